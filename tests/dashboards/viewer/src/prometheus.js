// SPDX-License-Identifier: MIT
// A data source for Prometheus: expressions and variables to its HTTP API, answers to data frames.
// In Grafana a part of this is Go; what is here follows its documentation.
import { DataSourceApi, FieldType, dateTime, rangeUtil } from '@grafana/data';
import { sceneGraph } from '@grafana/scenes';
import { of } from 'rxjs';

export const log = { queries: 0, errors: [], empty: [] };

const regexEscape = (text) => text.replace(/\\/g, '\\\\\\\\').replace(/[$^*{}[\]'+?.()|]/g, '\\\\$&');
const stringEscape = (text) => text.replace(/\\/g, '\\\\').replace(/"/g, '\\"');
function promFormat(value, variable) {
  const list = (Array.isArray(value) ? value : [value]).map(String);
  if (!variable.multi && !variable.includeAll) return stringEscape(list[0]);
  return list.length === 1 ? regexEscape(list[0]) : `(${list.map(regexEscape).join('|')})`;
}

const NUMBERS = { '+Inf': Infinity, Inf: Infinity, '-Inf': -Infinity };
const number = (text) => NUMBERS[text] ?? parseFloat(text);
const points = (series) => series.values ?? [series.value];

function seriesText({ __name__: name = '', ...labels }) {
  const inner = Object.entries(labels).map(([key, value]) => `${key}="${value}"`).join(',');
  return name + (inner ? `{${inner}}` : '');
}
function legendOf(target, labels, expression) {
  const format = target.legendFormat;
  if (!format || format === '__auto') return format && Object.keys(labels).length ? undefined : seriesText(labels) || expression;
  return format.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, key) => labels[key] ?? '');
}

const META = {
  id: 'prometheus', name: 'Prometheus', type: 'datasource', metrics: true, annotations: true, module: '', baseUrl: '',
  info: { author: { name: '' }, description: '', links: [], logos: { large: '', small: '' }, screenshots: [], updated: '', version: '' },
};
export const SETTINGS = { uid: 'prometheus', name: 'Prometheus', type: 'prometheus', meta: META, jsonData: {}, isDefault: true };

export class Prometheus extends DataSourceApi {
  /** `scrapeMs`: what Grafana calls the data source's scrape interval. */
  constructor(url, scrapeMs) {
    super({ ...SETTINGS, id: 1, url, access: 'proxy', readOnly: true });
    Object.assign(this, { meta: META, url, scrapeMs });
    this.annotations = {
      prepareAnnotation: (annotation) => annotation,
      prepareQuery: (annotation) => ({ refId: 'Anno', expr: annotation.expr, interval: annotation.step, annotation: true }),
      processEvents: (annotation, frames) => of(eventsOf(annotation, frames)),
    };
  }

  async ask(path, parameters) {
    const answer = await fetch(`${this.url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
    const { status, error, data } = await answer.json();
    log.queries += 1;
    if (status !== 'success') {
      log.errors.push(`${parameters.query ?? parameters['match[]'] ?? path}: ${error}`);
      throw new Error(error);
    }
    return data;
  }

  interpolate(text, scopedVars, range) {
    const seconds = Math.max(1, Math.round((range.to.valueOf() - range.from.valueOf()) / 1000));
    const interval = rangeUtil.intervalToMs(scopedVars?.__interval?.value ?? '15s');
    const own = {
      __range: { value: `${seconds}s` },
      __range_s: { value: seconds },
      __range_ms: { value: seconds * 1000 },
      __rate_interval: { value: `${Math.max(interval + this.scrapeMs, 4 * this.scrapeMs)}ms` },
    };
    const holder = scopedVars?.__sceneObject?.value;
    const scene = holder?.valueOf?.() ?? holder ?? window.__grafanaSceneContext;
    const done = sceneGraph.interpolate(scene, text, { ...scopedVars, ...own }, promFormat);
    const left = done.match(/\$\{?[a-z_]\w*/i);
    if (left) log.errors.push(`${left[0]} is not a variable: ${text}`);
    return done;
  }

  async query(request) {
    const shown = request.targets.filter((target) => !target.hide && target.expr);
    const frames = await Promise.all(shown.map((target) => this.run(target, request, shown.length > 1)));
    return { data: frames.flat() };
  }

  async run(target, { range, scopedVars, intervalMs }, several) {
    const expression = this.interpolate(target.expr, scopedVars, range);
    const least = target.interval ? rangeUtil.intervalToMs(this.interpolate(target.interval, scopedVars, range)) : this.scrapeMs;
    const step = Math.max(intervalMs * (target.intervalFactor || 1), least) / 1000;
    const align = (time) => Math.floor(time.valueOf() / 1000 / step) * step;
    const answer = target.instant
      ? await this.ask('query', { query: expression, time: range.to.valueOf() / 1000 })
      : await this.ask('query_range', { query: expression, start: align(range.from), end: align(range.to), step });
    if (!answer.result.length && !target.annotation) log.empty.push(expression);
    const legendFormat = target.legendFormat && this.interpolate(target.legendFormat, scopedVars, range);
    return framesOf({ ...target, legendFormat }, expression, answer, step * 1000, several);
  }

  /** A variable's values: label_values(...) and query_result(...), the two that Grafana users know. */
  async metricFindQuery(query, options) {
    const range = options?.range ?? { from: dateTime(Date.now() - 3600e3), to: dateTime() };
    const text = this.interpolate(query?.query ?? query ?? '', options?.scopedVars, range);
    const window_ = { start: range.from.valueOf() / 1000, end: range.to.valueOf() / 1000 };
    const choices = (texts) => texts.map((found) => ({ text: found, value: found }));
    const labels = text.match(/^label_values\((?:(.+),\s*)?([a-zA-Z_]\w*)\)\s*$/s);
    if (labels) {
      const [, selector, label] = labels;
      return choices(await this.ask(`label/${label}/values`, selector ? { ...window_, 'match[]': selector } : window_));
    }
    const result = text.match(/^query_result\((.+)\)\s*$/s);
    if (!result) throw new Error(`not a variable's query: ${text}`);
    const { result: found } = await this.ask('query', { query: result[1], time: window_.end });
    return choices(found.map((series) => `${seriesText(series.metric)} ${series.value[1]} ${series.value[0] * 1000}`));
  }
}

function framesOf(target, expression, { resultType, result }, stepMs, several) {
  const all = resultType === 'scalar' ? [{ metric: {}, value: result }] : result;
  const meta = { custom: { resultType } };
  if (target.format === 'table') return [tableOf(target, all, meta, several)];
  if (target.format === 'heatmap') return [bucketsOf(target, all, meta, stepMs)];
  return all.map((series) => {
    const name = legendOf(target, series.metric, expression);
    return {
      refId: target.refId, name, length: points(series).length,
      meta: { ...meta, type: target.instant ? 'numeric-multi' : 'timeseries-multi' },
      fields: [
        { name: 'Time', type: FieldType.time, config: { interval: stepMs }, values: points(series).map(([at]) => at * 1000) },
        { name: 'Value', type: FieldType.number, labels: series.metric, config: name === undefined ? {} : { displayNameFromDS: name }, values: points(series).map(([, value]) => number(value)) },
      ],
    };
  });
}

function tableOf(target, all, meta, several) {
  const keys = [...new Set(all.flatMap((series) => Object.keys(series.metric)))].sort();
  const rows = all.flatMap((series) => points(series).map((point) => [series.metric, point]));
  return {
    refId: target.refId, meta, length: rows.length,
    fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: rows.map(([, [at]]) => at * 1000) },
      ...keys.map((key) => ({ name: key, type: FieldType.string, config: { filterable: true }, values: rows.map(([labels]) => labels[key] ?? '') })),
      { name: several ? `Value #${target.refId}` : 'Value', type: FieldType.number, config: {}, values: rows.map(([, [, value]]) => number(value)) },
    ],
  };
}

function bucketsOf(target, all, meta, stepMs) {
  const sorted = [...all].sort((a, b) => number(a.metric.le) - number(b.metric.le));
  const times = [...new Set(sorted.flatMap((series) => points(series).map(([at]) => at)))].sort((a, b) => a - b);
  const upTo = sorted.map((series) => {
    const known = new Map(points(series).map(([at, value]) => [at, number(value)]));
    return times.map((at) => known.get(at) ?? 0);
  });
  // Prometheus counts what is up to each bound; a row is what lies between two of them.
  const rows = upTo.map((counts, row) => counts.map((count, i) => Math.max(0, count - (upTo[row - 1]?.[i] ?? 0))));
  return {
    refId: target.refId, meta: { ...meta, type: 'heatmap-rows' }, length: times.length,
    fields: [
      { name: 'Time', type: FieldType.time, config: { interval: stepMs }, values: times.map((at) => at * 1000) },
      ...sorted.map((series, row) => ({ name: series.metric.le, labels: series.metric, type: FieldType.number, config: { displayNameFromDS: series.metric.le }, values: rows[row] })),
    ],
  };
}

/** Annotations: a series' samples, or with useValueForTime the times that its values say, each once. */
function eventsOf(annotation, frames) {
  const fill = (format, labels) => (format ?? '').replace(/\{\{\s*(.+?)\s*\}\}/g, (_, key) => labels[key] ?? '');
  return frames.flatMap((frame) => {
    const [times, values] = frame.fields;
    const labels = values.labels ?? {};
    const at = annotation.useValueForTime ? values.values.map(Math.floor) : times.values.filter((_, i) => values.values[i] > 0);
    return [...new Set(at)].map((time) => ({
      time, title: fill(annotation.titleFormat, labels), text: fill(annotation.textFormat, labels),
      tags: (annotation.tagKeys ?? '').split(',').filter(Boolean).map((key) => labels[key.trim()] ?? ''),
    }));
  });
}
