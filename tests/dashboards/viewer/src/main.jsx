// SPDX-License-Identifier: MIT
// The page: draws the board that it is asked for, and leaves `window.__report` when all panels have their data.
//   ?board=URL&prometheus=URL&scrape=MS&from=MS&to=MS&var-NAME=VALUE…
import { EventBusSrv, LoadingState, createTheme, getValueFormats, ThemeContext, toDataFrame } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import * as runtime from '@grafana/runtime';
import { dataLayers, VizPanel, loadResources, sceneGraph } from '@grafana/scenes';
import { GlobalStyles, LinkButton, PortalContainer } from '@grafana/ui';
import React from 'react';
import { createRoot } from 'react-dom/client';
import 'react-grid-layout/css/styles.css';
import { MemoryRouter } from 'react-router-dom';
import { from as fromPromise, of } from 'rxjs';
import { catchError, map, startWith } from 'rxjs/operators';
import 'uplot/dist/uPlot.min.css';
import { makePlugins } from './panels/index.js';
import { fillRegistries } from './panels/registries.js';
import { Prometheus, SETTINGS, log } from './prometheus.js';
import { sceneOf } from './scene.js';

const asked = new URLSearchParams(location.search);

/** The services that Grafana's app gives to its libraries. */
function serve(source, plugins) {
  runtime.setDataSourceSrv({
    get: async () => source,
    getList: () => [SETTINGS],
    getInstanceSettings: () => SETTINGS,
    reload() {},
    registerRuntimeDataSource() {},
  });
  runtime.setTemplateSrv({
    replace: (text, scoped, format) => (window.__grafanaSceneContext ? sceneGraph.interpolate(window.__grafanaSceneContext, text, scoped, format) : text ?? ''),
    getVariables: () => [],
    containsTemplate: () => false,
    updateTimeRange() {},
  });
  runtime.setAppEvents(new EventBusSrv());
  runtime.setEchoSrv({ addEvent() {}, addBackend() {}, flush() {} });
  runtime.setPluginImportUtils({
    importPanelPlugin: async (id) => {
      if (!plugins.has(id)) throw new Error(`panel type ${id} is not supported`);
      return plugins.get(id);
    },
    getPanelPluginFromCache: (id) => plugins.get(id),
  });
  runtime.setRunRequest((dataSource, request) => {
    const base = { series: [], annotations: [], request, timeRange: request.range };
    const failed = (error) => ({ ...base, state: LoadingState.Error, error: { message: error.message }, errors: [{ message: error.message }] });
    return fromPromise(dataSource.query(request)).pipe(
      map(({ data }) => ({ ...base, state: LoadingState.Done, series: data.map(toDataFrame) })),
      catchError((error) => of(failed(error))),
      startWith({ ...base, state: LoadingState.Loading })
    );
  });
  runtime.setReturnToPreviousHook?.(() => () => {});
  runtime.setChromeHeaderHeightHook?.(() => 0);
  runtime.setPluginLinksHook?.(() => ({ links: [], isLoading: false }));
}

/** Pixels that something was drawn on. */
function ink(element) {
  return [...element.querySelectorAll('canvas')].reduce((sum, canvas) => {
    if (!canvas.width || !canvas.height) return sum;
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let drawn = 0;
    for (let i = 3; i < data.length; i += 4) if (data[i]) drawn++;
    return sum + drawn;
  }, 0);
}

const nameOf = (field) => field.config.displayName ?? field.config.displayNameFromDS ?? field.name;

function panelReport(panel) {
  const element = document.querySelector(`[data-viz-panel-key="${panel.state.key}"]`);
  const data = panel.state.$data ? sceneGraph.getData(panel).state.data : null;
  const fields = (data?.series ?? []).flatMap((frame) => frame.fields.filter((field) => field.type !== 'time'));
  return {
    id: Number(panel.state.key.split('-')[1]),
    type: panel.state.pluginId,
    title: sceneGraph.interpolate(panel, panel.state.title),
    error: data?.error?.message ?? data?.errors?.[0]?.message ?? panel.state._pluginLoadError ?? null,
    rows: (data?.series ?? []).reduce((sum, frame) => sum + frame.length, 0),
    values: fields.reduce((sum, field) => sum + field.values.filter((value) => value !== null && value !== '' && !Number.isNaN(value)).length, 0),
    series: fields.map(nameOf),
    annotations: (data?.annotations ?? []).reduce((sum, frame) => sum + frame.length, 0),
    text: element?.innerText.replace(/\s+/g, ' ').trim() ?? '',
    ink: element ? ink(element) : 0,
    clipped: element ? [...element.querySelectorAll('h2,h6')].filter((title) => title.scrollWidth > title.clientWidth + 1).map((title) => title.innerText) : [],
  };
}

function reportOf(scene, board) {
  const find = (test) => sceneGraph.findAllObjects(scene, test);
  return {
    uid: board.uid,
    panels: find((found) => found instanceof VizPanel).map(panelReport),
    variables: scene.state.$variables.state.variables.map(({ state }) => ({ name: state.name, value: state.value, text: state.text, error: state.error ?? null, options: state.options?.map((option) => option.label) ?? [] })),
    annotations: find((found) => found instanceof dataLayers.AnnotationsDataLayer).map(({ state }) => ({
      name: state.name,
      error: state.data?.errors?.[0]?.message ?? null,
      times: (state.data?.series ?? []).flatMap((frame) => [...(frame.fields.find((field) => field.name === 'time')?.values ?? [])]),
    })),
    units: getValueFormats().flatMap((group) => group.submenu.map((unit) => unit.value)),
    ...log,
  };
}

const isLoaded = ({ data } = {}) => data && (data.state === LoadingState.Done || data.state === LoadingState.Error);

/** Resolves when every panel has its data, and again some frames later when it is drawn. */
async function settled(scene) {
  const panels = () => sceneGraph.findAllObjects(scene, (found) => found instanceof VizPanel && found.state.$data);
  while (!panels().every((panel) => isLoaded(sceneGraph.getData(panel).state))) await new Promise((done) => setTimeout(done, 100));
  await document.fonts.ready;
  await new Promise((done) => setTimeout(done, 800));
}

const annotationsOf = (board) => (board.annotations?.list ?? []).filter(({ builtIn, enable }) => !builtIn && enable);

function Board({ scene, board, others, theme }) {
  return (
    <ThemeContext.Provider value={theme}>
      <MemoryRouter>
        <GlobalStyles />
        <div style={{ padding: 16, minHeight: '100vh', background: theme.colors.background.canvas, boxSizing: 'border-box', display: 'flex', flexDirection: 'column' }}>
          <div style={{ display: 'flex', alignItems: 'center', marginBottom: 8, gap: 8 }}>
            <h4 style={{ margin: 0, flexGrow: 1 }}>{board.title}</h4>
            {annotationsOf(board).map(({ name, iconColor }) => (
              <span key={name} style={{ fontSize: 12, marginRight: 8 }}><span style={{ color: theme.visualization.getColorByName(iconColor) }}>▲</span> {name}</span>
            ))}
            {others.map(({ uid, title }) => <LinkButton key={uid} size="sm" variant="secondary" icon="apps" href={`/d/${uid}`}>{title}</LinkButton>)}
          </div>
          <scene.Component model={scene} />
        </div>
        <PortalContainer />
      </MemoryRouter>
    </ThemeContext.Provider>
  );
}

async function main() {
  await initPluginTranslations('vftrace-boards', []);
  await loadResources?.('en-US').catch(() => {});
  fillRegistries();
  const source = new Prometheus(asked.get('prometheus'), Number(asked.get('scrape')));
  serve(source, makePlugins());
  const { board, others } = await (await fetch(asked.get('board'))).json();
  const theme = createTheme({ colors: { mode: 'dark' } });
  runtime.config.theme2 = theme;
  const variables = Object.fromEntries([...asked].filter(([key]) => key.startsWith('var-')).map(([key, value]) => [key.slice(4), value]));
  const iso = (name) => new Date(Number(asked.get(name))).toISOString();
  const scene = sceneOf(board, { from: iso('from'), to: iso('to'), variables });
  window.__grafanaSceneContext = scene;
  createRoot(document.getElementById('root')).render(<Board scene={scene} board={board} others={others} theme={theme} />);
  await settled(scene);
  window.__report = reportOf(scene, board);
}

main();
