# SPDX-License-Identifier: MIT
"""The common parts of the boards: colours, variables, annotations, and short functions for panels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from vftrace.model.migration import Checkpoint
from vftrace.outputs.exporter.accounts import DESTINATION_PHASES, SOURCE_PHASES
from vftrace.uapi import VFIO_DEVICE_STATES

TAG = "vftrace"
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24

GREY, DARK_GREY = "#8b93a1", "#565d6b"

OUTCOME_COLOURS = {"completed": "green", "cancelled": "blue", "failed": "red", "unknown": GREY}
PHASE_COLOURS = {
    "setup": GREY,
    "precopy": "blue",
    "stop": "light-orange",
    "final-sync": "orange",
    "device-save": "dark-orange",
    "handover": "yellow",
    "postcopy": "light-purple",
    "cleanup": DARK_GREY,
    "incoming": "light-blue",
    "device-load": "purple",
    "resume": "light-green",
    "running": "green",
}
# A checkpoint has the colour of the phase that ends with it.
CHECKPOINT_COLOURS = {
    "vcpus-stopped": "super-light-orange",
    "devices-stopped": "light-yellow",
    "clock-read": "light-orange",
    "final-sync-done": "orange",
    "state-saved": "dark-orange",
    "devices-loaded": "purple",
    "held": GREY,
    "clock-set": "light-blue",
    "vcpus-running": "light-green",
}
DEVICE_COLOURS = {
    "ERROR": "red",
    "STOP": GREY,
    "RUNNING": "green",
    "STOP_COPY": "dark-orange",
    "RESUMING": "purple",
    "RUNNING_P2P": "light-green",
    "PRE_COPY": "blue",
    "PRE_COPY_P2P": "light-blue",
}
RESULT_COLOURS = {"ACK": "green", "NACK": "red", "CTS": "light-blue", "none": GREY}
QUANTILE_COLOURS = {"median": "green", "90 %": "yellow", "99 %": "red"}

PHASES = (*SOURCE_PHASES, *(p for p in DESTINATION_PHASES if p not in SOURCE_PHASES), "running")
assert set(PHASE_COLOURS) == set(PHASES)
assert set(CHECKPOINT_COLOURS) == set(Checkpoint)
assert set(DEVICE_COLOURS) == set(VFIO_DEVICE_STATES)

GREEN_RED = ((None, "green"), (1.0, "red"))
DOWNTIME_STEPS = ((None, "green"), (0.3, "yellow"), (1.0, "red"))
"""0.3 s is QEMU's default downtime-limit (migration/options.c)."""
PLAIN = ((None, "text"),)

Steps = Sequence[tuple[float | None, str]]


PanelBuilder = (
    bargauge.Panel
    | heatmap.Panel
    | stat.Panel
    | statetimeline.Panel
    | table.Panel
    | timeseries.Panel
)
SomePanel = TypeVar("SomePanel", bargauge.Panel, timeseries.Panel)


# -- expressions ---------------------------------------------------------------------------------


def of(metric: str, *matchers: str) -> str:
    """`metric` of the chosen jobs and instances, with more matchers."""
    chosen = ['job=~"$job"', 'instance=~"$instance"', *matchers]
    return f"vftrace_{metric}{{{', '.join(chosen)}}}"


def rate(metric: str, *matchers: str) -> str:
    """Per second, over the interval that Grafana finds right."""
    return f"rate({of(metric, *matchers)}[$__rate_interval])"


def in_range(metric: str, *matchers: str) -> str:
    """How much a counter grew in the time that is shown."""
    return f"increase({of(metric, *matchers)}[$__range])"


def named(expression: str, by: str = "instance, job, vm") -> str:
    """With the VM's name beside its UUID, and still there where no name is known."""
    name = f"group by ({by}, name) ({of('vm_info')})"
    return f"({expression}) * on ({by}) group_left (name) {name} or on ({by}) ({expression})"


def numbered(metric: str, label: str, values: Sequence[str], *matchers: str, first: int = 0) -> str:
    """The place of the label value whose series is 1, as a number: what a state timeline can show."""
    series = [of(metric, *matchers, f'{label}="{value}"') for value in values]
    return " or ".join(f"({n} * ({one} == 1))" for n, one in enumerate(series, first))


# -- targets -------------------------------------------------------------------------------------


def query(expr: str, legend: str = "", ref: str = "A") -> prometheus.Dataquery:
    """A query over the range."""
    found = prometheus.Dataquery().expr(expr).ref_id(ref).range().datasource(DATASOURCE)
    return found.legend_format(legend or "__auto")


def instant(expr: str, legend: str = "", ref: str = "A") -> prometheus.Dataquery:
    """A query of the range's end."""
    found = prometheus.Dataquery().expr(expr).ref_id(ref).instant().datasource(DATASOURCE)
    return found.legend_format(legend or "__auto")


def rows_of(expr: str, ref: str) -> prometheus.Dataquery:
    """A query of the range's end, one table row for each series."""
    return instant(expr, ref=ref).format(PromQueryFormat.TABLE)


def buckets(expr: str) -> prometheus.Dataquery:
    """A histogram's buckets over the range."""
    return query(expr, "{{le}}").format(PromQueryFormat.HEATMAP)


# -- fields --------------------------------------------------------------------------------------


def thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    """Absolute thresholds; the first step begins at None."""
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=colour) for value, colour in steps])
    )


def coloured(mode: models.FieldColorModeId, fixed: str | None = None) -> dashboard.FieldColor:
    """A field's colour."""
    found = dashboard.FieldColor().mode(mode)
    return found if fixed is None else found.fixed_color(fixed)


def mapping(words: Mapping[str, tuple[str, str]]) -> models.ValueMap:
    """Value to (text, colour)."""
    return models.ValueMap(
        {
            value: models.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(words.items())
        }
    )


def numbered_mapping(
    colours: Mapping[str, str], names: Sequence[str], first: int = 0
) -> models.ValueMap:
    """The words for what `numbered` made."""
    return mapping({str(n): (name, colours[name]) for n, name in enumerate(names, first)})


def values(**properties: Any) -> list[models.DynamicConfigValue]:
    """Properties of an override; `custom__width` is `custom.width`."""
    return [
        models.DynamicConfigValue(id_val=name.replace("__", "."), value=value)
        for name, value in properties.items()
    ]


def fixed(colour: str) -> dict[str, str]:
    """The value of an override's `color`."""
    return {"mode": "fixed", "fixedColor": colour}


def colours_by_name(panel: SomePanel, colours: Mapping[str, str]) -> SomePanel:
    """Each series of such a name has its colour on every board."""
    for name, colour in colours.items():
        panel.override_by_name(name, values(color=fixed(colour)))
    return panel


# -- panels --------------------------------------------------------------------------------------


def figure(
    title: str, description: str, unit: str, target: prometheus.Dataquery, steps: Steps = PLAIN
) -> stat.Panel:
    """One big number: the latest one where the query is over the range."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .height(4)
        .span(4)
        .with_target(target)
        .thresholds(thresholds(steps))
        .color_scheme(coloured(models.FieldColorModeId.THRESHOLDS))
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .justify_mode(common_models.BigValueJustifyMode.CENTER)
        .text_mode(common_models.BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .orientation(common_models.VizOrientation.AUTO)
        .no_value("–")
    )


def lines(
    title: str,
    description: str,
    unit: str,
    *targets: prometheus.Dataquery,
    calcs: Sequence[str] = (),
) -> timeseries.Panel:
    """Lines over time; with `calcs` its legend is a table at the right."""
    legend = common.VizLegendOptions().show_legend(True).calcs(list(calcs))
    if calcs:
        legend.display_mode(common_models.LegendDisplayMode.TABLE)
        legend.placement(common_models.LegendPlacement.RIGHT)
    else:
        legend.display_mode(common_models.LegendDisplayMode.LIST)
        legend.placement(common_models.LegendPlacement.BOTTOM)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .height(8)
        .span(12)
        .min(0)
        .line_width(2)
        .fill_opacity(10)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(legend)
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    for target in targets:
        panel.with_target(target)
    return panel


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """The lines on top of each other."""
    stacking = common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A")
    return panel.stacking(stacking).fill_opacity(70).line_width(1)


def limit_line(panel: timeseries.Panel, at: float) -> timeseries.Panel:
    """A dashed line across, at this value."""
    style = common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
    steps = ((None, "transparent"), (at, "yellow"))
    return panel.thresholds(thresholds(steps)).thresholds_style(style)


def logarithmic(panel: timeseries.Panel) -> timeseries.Panel:
    """Powers of ten on the y axis, which cannot begin at 0."""
    scale = common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10)
    config = panel.build().field_config
    assert config is not None
    config.defaults.min_val = None
    return panel.scale_distribution(scale)


def bars(panel: timeseries.Panel) -> timeseries.Panel:
    """Stacked bars."""
    stacked(panel).draw_style(common_models.GraphDrawStyle.BARS).fill_opacity(80).line_width(0)
    return panel.bar_width_factor(0.9)


def steps_of(panel: timeseries.Panel) -> timeseries.Panel:
    """A value holds until the next one."""
    return panel.line_interpolation(common_models.LineInterpolation.STEP_AFTER)


def gauges(
    title: str, description: str, unit: str, target: prometheus.Dataquery, colour: str | None = None
) -> bargauge.Panel:
    """A horizontal bar for each series."""
    mode = models.FieldColorModeId
    scheme = coloured(mode.THRESHOLDS) if colour is None else coloured(mode.FIXED, colour)
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .height(8)
        .span(6)
        .min(0)
        .with_target(target)
        .thresholds(thresholds(PLAIN))
        .color_scheme(scheme)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .value_mode(common_models.BarGaugeValueMode.TEXT)
        .name_placement(common_models.BarGaugeNamePlacement.LEFT)
        .show_unfilled(True)
        .text(common.VizTextDisplayOptions().title_size(11).value_size(15))
        .sizing(common_models.BarGaugeSizing.MANUAL)
        .min_viz_width(8)
        .min_viz_height(16)
        .max_viz_height(34)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def states(
    title: str, description: str, target: prometheus.Dataquery, words: models.ValueMap
) -> statetimeline.Panel:
    """A state timeline: a row for each series, its words and colours from `words`."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .unit("none")
        .height(6)
        .span(WIDTH)
        .with_target(target)
        .mappings([words])
        .color_scheme(coloured(models.FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds(PLAIN))
        .fill_opacity(85)
        .line_width(0)
        .row_height(0.8)
        .merge_values(True)
        .per_page(20)
        .show_value(common_models.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
        )
    )


def density(title: str, description: str, unit: str, target: prometheus.Dataquery) -> heatmap.Panel:
    """A heatmap of a histogram's buckets; `unit` is that of the buckets."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .height(8)
        .span(12)
        .with_target(target)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().scheme("Oranges").exponent(0.5).steps(64))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_gap(1)
        .hide_legend()
        .filter_values(heatmap.FilterValueRange().le(1e-9))
    )


@dataclass(frozen=True)
class Column:
    """A table's column: `of` is the label it shows, or the ref of the query whose value it shows."""

    of: str
    title: str
    properties: Mapping[str, Any] = field(default_factory=dict)


def listing(
    title: str,
    description: str,
    targets: Sequence[prometheus.Dataquery],
    joined_by: str | None,
    columns: Sequence[Column],
    sort: str | None = None,
) -> table.Panel:
    """A table. Its queries are joined by a label (None: there is one), and all else is left out."""
    refs = {target.build().to_json()["refId"] for target in targets}
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .unit("none")
        .height(9)
        .span(WIDTH)
        .cell_height(common_models.TableCellHeight.SM)
        .color_scheme(coloured(models.FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds(PLAIN))
    )
    for target in targets:
        panel.with_target(target)
    if joined_by is not None:
        panel.with_transformation(_transform("joinByField", byField=joined_by, mode="outer"))
    fields = {
        column.of: f"Value #{column.of}" if column.of in refs and len(targets) > 1 else column.of
        for column in columns
    }
    fields |= {"A": "Value"} if len(targets) == 1 else {}
    names = [fields[column.of] for column in columns]
    panel.with_transformation(_transform("filterFieldsByName", include={"names": names}))
    panel.with_transformation(
        _transform(
            "organize",
            indexByName={name: index for index, name in enumerate(names)},
            renameByName={fields[c.of]: c.title for c in columns},
            excludeByName={},
        )
    )
    for column in columns:
        if column.properties:
            panel.override_by_name(column.title, values(**column.properties))
    if sort is not None:
        panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])
    return panel


def _transform(name: str, **options: Any) -> models.DataTransformerConfig:
    return models.DataTransformerConfig(id_val=name, options=options)


# -- boards --------------------------------------------------------------------------------------


class _StampsQuery(models.AnnotationQuery):
    text: str

    def to_json(self) -> dict[str, object]:
        """As Grafana stores it."""
        return super().to_json() | {
            "useValueForTime": True,
            "titleFormat": self.name,
            "textFormat": self.text,
            "tagKeys": "vm",
            "step": "",
        }


class Stamps(Builder[models.AnnotationQuery]):
    """An annotation whose time is the value of a series, in milliseconds.

    The SDK does not know that Grafana's Prometheus data source has it (grafana-prometheus, annotations.ts).
    """

    def __init__(self, name: str, colour: str, expr: str, text: str) -> None:
        """Drawn on all panels, if `only` does not say which."""
        self._internal = _StampsQuery(
            name=name, datasource=DATASOURCE, icon_color=colour, expr=expr
        )
        self._internal.text = text

    def only(self, panels: Sequence[int]) -> None:
        """Draw it on the panels of these numbers only."""
        self._internal.filter_val = models.AnnotationPanelFilter(exclude=False, ids=list(panels))

    def build(self) -> models.AnnotationQuery:
        """The query."""
        return self._internal


def blackout_annotations(*matchers: str) -> list[Stamps]:
    """When guests stopped and when they ran again, to the microsecond, whatever the scrape interval is."""
    return [
        Stamps(name, colour, f"1000 * {of(metric, *matchers)}", "{{vm}} on {{instance}}")
        for name, colour, metric in (
            ("Guest stops", "red", "migration_stopped_timestamp_seconds"),
            ("Guest runs again", "green", "migration_resumed_timestamp_seconds"),
        )
    ]


def chosen(name: str, label: str, query_text: str, *, many: bool = True) -> dashboard.QueryVariable:
    """A variable with the values that a query finds in the time that is shown."""
    found = (
        dashboard.QueryVariable(name)
        .label(label)
        .query({"query": query_text, "refId": f"{name}-variable"})
        .datasource(DATASOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
        .multi(many)
        .include_all(many)
    )
    if many:
        found.all_value(".+")
        found.current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return found


def common_variables() -> list[Any]:
    """Data source, job and instance: on every board."""
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        chosen("job", "Job", "label_values(vftrace_build_info, job)"),
        chosen("instance", "Instance", 'label_values(vftrace_build_info{job=~"$job"}, instance)'),
    ]


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it; without a title they stand alone."""

    title: str | None
    panels: Sequence[PanelBuilder]


def board_of(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    variables: Sequence[Any] = (),
    annotations: Sequence[Stamps] = (),
    marked: Sequence[PanelBuilder] = (),
    span: str = "now-6h",
) -> models.Dashboard:
    """A board; panels flow from left to right in lines of 24 columns, and are numbered as they come.

    Annotations are drawn on the `marked` panels, or on all panels if `marked` is empty.
    """
    found = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .time(span, "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("vftrace")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
            .as_dropdown(False)
        )
    )
    for variable in (*common_variables(), *variables):
        found.with_variable(variable)
    number = 1
    numbers = []
    for row in rows:
        if row.title is not None:
            found.with_row(dashboard.Row(row.title).id(number))
            number += 1
        for panel in row.panels:
            panel.id(number).datasource(DATASOURCE)
            found.with_panel(panel)
            if any(panel is one for one in marked):
                numbers.append(number)
            number += 1
    for annotation in annotations:
        if numbers:
            annotation.only(numbers)
        found.annotation(annotation)
    return found.build()


def to_text(board: models.Dashboard) -> str:
    """The board as it is committed."""
    return json.dumps(board, cls=JSONEncoder, indent=1, ensure_ascii=False) + "\n"
