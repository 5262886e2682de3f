// SPDX-License-Identifier: MIT
// A classic dashboard JSON as @grafana/scenes objects. Grafana's own converter is not on npm.
import {
  CustomVariable, DataSourceVariable, EmbeddedScene, QueryVariable, SceneControlsSpacer,
  SceneDataLayerSet, SceneDataTransformer, SceneGridItem, SceneGridLayout, SceneGridRow, SceneQueryRunner, SceneRefreshPicker, SceneTimePicker, SceneTimeRange,
  SceneVariableSet, VariableValueSelectors, VizPanel, dataLayers,
} from '@grafana/scenes';
import { SETTINGS } from './prometheus.js';

const SOURCE = { uid: SETTINGS.uid, type: SETTINGS.type };

function variableOf(model, wanted) {
  const chosen = wanted[model.name] ?? model.current?.value;
  const common = { name: model.name, label: model.label ?? undefined, hide: model.hide ?? 0, skipUrlSync: true };
  const several = { isMulti: !!model.multi, includeAll: !!model.includeAll, allValue: model.allValue ?? undefined, defaultToAll: !!model.includeAll };
  const current = chosen === undefined ? {} : { value: chosen, text: chosen };
  switch (model.type) {
    case 'datasource':
      return new DataSourceVariable({ ...common, ...several, pluginId: model.query, value: SOURCE.uid, text: SETTINGS.name });
    case 'query':
      return new QueryVariable({ ...common, ...several, ...current, query: model.query, datasource: SOURCE, regex: model.regex ?? '', sort: model.sort ?? 0, refresh: model.refresh || 1 });
    case 'custom':
      return new CustomVariable({ ...common, ...several, ...current, query: model.query ?? '' });
    default:
      throw new Error(`variable type ${model.type} is not supported`);
  }
}

function dataOf(panel) {
  if (!panel.targets?.length) return undefined;
  const queries = panel.targets.map((target) => ({ ...target, datasource: SOURCE }));
  const runner = new SceneQueryRunner({ datasource: SOURCE, queries, dataLayerFilter: { panelId: panel.id }, maxDataPoints: panel.maxDataPoints ?? undefined, minInterval: panel.interval ?? undefined });
  return panel.transformations?.length ? new SceneDataTransformer({ $data: runner, transformations: panel.transformations }) : runner;
}

const panelOf = (panel) =>
  new VizPanel({
    key: `panel-${panel.id}`, title: panel.title ?? '', description: panel.description, pluginId: panel.type, pluginVersion: '12.4.10',
    options: panel.options ?? {}, fieldConfig: { defaults: {}, overrides: [], ...panel.fieldConfig }, displayMode: panel.transparent ? 'transparent' : 'default', $data: dataOf(panel),
  });
const place = (panel) => {
  const { x, y, w: width, h: height } = panel.gridPos;
  return new SceneGridItem({ key: `grid-${panel.id}`, x, y, width, height, isDraggable: false, isResizable: false, body: panelOf(panel) });
};

function gridOf(panels) {
  const grid = [];
  let row = null;
  for (const panel of panels) {
    if (panel.type === 'row') {
      row = new SceneGridRow({ key: `row-${panel.id}`, title: panel.title, x: 0, y: panel.gridPos.y, isCollapsible: true, isCollapsed: false, children: (panel.panels ?? []).map(place) });
      grid.push(row);
    } else if (row) row.setState({ children: [...row.state.children, place(panel)] });
    else grid.push(place(panel));
  }
  return grid;
}

export function sceneOf(board, { from, to, variables }) {
  const annotations = (board.annotations?.list ?? []).filter((query) => !query.builtIn);
  return new EmbeddedScene({
    $timeRange: new SceneTimeRange({ from, to, timeZone: 'utc' }),
    $variables: new SceneVariableSet({ variables: (board.templating?.list ?? []).map((model) => variableOf(model, variables)) }),
    $data: new SceneDataLayerSet({ layers: annotations.map((query) => new dataLayers.AnnotationsDataLayer({ name: query.name, isEnabled: query.enable, query: { ...query, datasource: SOURCE } })) }),
    controls: [new VariableValueSelectors({}), new SceneControlsSpacer(), new SceneTimePicker({}), new SceneRefreshPicker({ refresh: '', intervals: ['30s'] })],
    body: new SceneGridLayout({ isLazy: false, isDraggable: false, isResizable: false, children: gridOf(board.panels ?? []) }),
  });
}
