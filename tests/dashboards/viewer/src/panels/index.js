// SPDX-License-Identifier: MIT
// Panel plugins by their ids in a board's JSON, made of what @grafana/ui publishes. Options' names are Grafana's.
import { FieldColorModeId, PanelPlugin } from '@grafana/data';
import { HeatmapPanel } from './heatmap.jsx';
import { field } from './registries.js';
import { BarGaugePanel, StatPanel } from './single.jsx';
import { StateTimelinePanel } from './states.jsx';
import { TablePanel } from './table.jsx';
import { TimeSeriesPanel } from './timeseries.jsx';

const INFO = { author: { name: '' }, description: '', links: [], logos: { large: '', small: '' }, screenshots: [], updated: '', version: '' };
const HIDE = { hideFrom: { tooltip: false, viz: false, legend: false } };
const GRAPH = {
  drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none', fillBelowTo: undefined, lineStyle: undefined,
  spanNulls: false, insertNulls: false, showPoints: 'auto', pointSize: 5, barAlignment: 0, barWidthFactor: 0.6, barMaxWidth: undefined,
  stacking: { mode: 'none', group: 'A' }, transform: undefined, axisPlacement: 'auto', axisLabel: '', axisWidth: undefined, axisSoftMin: undefined,
  axisSoftMax: undefined, axisGridShow: undefined, axisCenteredZero: false, axisColorMode: 'text', axisBorderShow: false,
  scaleDistribution: { type: 'linear' }, thresholdsStyle: { mode: 'off' }, ...HIDE,
};
const TABLE = { align: 'auto', cellOptions: { type: 'auto' }, width: undefined, minWidth: undefined, inspect: false, filterable: undefined, hideFrom: undefined };
const STATES = { lineWidth: 0, fillOpacity: 70, spanNulls: false, insertNulls: false, ...HIDE };
const HEATMAP = { scaleDistribution: undefined, hideFrom: undefined };

function plugin(id, component, colour, custom) {
  const made = new PanelPlugin(component);
  made.meta = { id, name: id, type: 'panel', module: '', baseUrl: '', info: INFO };
  made.setDataSupport({ annotations: true, alertStates: false });
  made.useFieldConfig({
    standardOptions: { color: { defaultValue: { mode: colour } } },
    useCustomConfig: (builder) => {
      for (const [path, defaultValue] of Object.entries(custom)) builder.addCustomEditor({ ...field(path), defaultValue });
    },
  });
  return [id, made];
}

export const makePlugins = () => new Map([
  plugin('timeseries', TimeSeriesPanel, FieldColorModeId.PaletteClassic, GRAPH),
  plugin('stat', StatPanel, FieldColorModeId.Thresholds, {}),
  plugin('bargauge', BarGaugePanel, FieldColorModeId.Thresholds, {}),
  plugin('table', TablePanel, FieldColorModeId.Thresholds, TABLE),
  plugin('state-timeline', StateTimelinePanel, 'continuous-GrYlRd', STATES),
  plugin('heatmap', HeatmapPanel, FieldColorModeId.Thresholds, HEATMAP),
]);
