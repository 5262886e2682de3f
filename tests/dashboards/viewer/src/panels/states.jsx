// SPDX-License-Identifier: MIT
// State timeline. Grafana's own is part of its app, not of its libraries.
import { FieldType, formattedValueToString, getFieldDisplayName } from '@grafana/data';
import { GraphNG, VizLayout, VizLegend, useTheme2 } from '@grafana/ui';
import React from 'react';
import { Empty, Marks, drawable, legendOf } from './common.jsx';
import { rowsConfig } from './rows.js';

const isState = (field) => field.type !== FieldType.time;

/** Runs of one state. A run ends with its last sample and one step, or where samples are missing for longer than that. */
function runsOf(frame, field) {
  const time = frame.fields.find((found) => found.type === FieldType.time);
  const step = time.config.interval ?? 0;
  const runs = [];
  let run = null;
  time.values.forEach((at, i) => {
    const value = field.values[i];
    const display = value === null || value === undefined ? null : field.display(value);
    const text = display && formattedValueToString(display);
    if (run && (text !== run.text || at - run.last > 1.5 * step)) run = null;
    if (display && !run) runs.push((run = { from: at, text, colour: display.color }));
    if (run) Object.assign(run, { last: at, to: at + step });
  });
  return runs;
}

export function StateTimelinePanel({ data, fieldConfig, timeRange, timeZone, width, height, options }) {
  const theme = useTheme2();
  // The pages after the first need somebody who turns them.
  const frames = React.useMemo(() => drawable(data.series, isState).slice(0, options.perPage), [data.series]);
  if (!frames.length) return <Empty text={fieldConfig.defaults.noValue} />;
  const fields = frames.flatMap((frame) => frame.fields.filter(isState).map((field) => [field, frame]));
  const names = fields.map(([field, frame]) => getFieldDisplayName(field, frame, frames));
  const words = new Map();
  for (const [field] of fields)
    for (const value of [...new Set(field.values)].sort((a, b) => a - b))
      if (value !== null && value !== undefined) words.set(formattedValueToString(field.display(value)), [value, field.display(value).color]);
  const items = [...words].sort(([, [a]], [, [b]]) => a - b).map(([label, [, color]]) => ({ label, color, yAxis: 1 }));

  const prepConfig = (_, __, getTimeRange) =>
    rowsConfig({
      theme, names, timeZone, getTimeRange, series: fields.length,
      draw: (plot, ctx, bbox) => {
        const row = bbox.height / names.length, bar = row * (options.rowHeight ?? 0.9);
        ctx.font = `${12 * devicePixelRatio}px ${theme.typography.fontFamily}`;
        ctx.textBaseline = 'middle';
        ctx.textAlign = 'center';
        fields.forEach(([field, frame], i) => {
          const top = bbox.top + row * i + (row - bar) / 2;
          for (const run of runsOf(frame, field)) {
            const left = plot.valToPos(run.from, 'x', true), right = plot.valToPos(Math.min(run.to, getTimeRange().to.valueOf()), 'x', true);
            ctx.globalAlpha = (field.config.custom?.fillOpacity ?? 70) / 100;
            ctx.fillStyle = run.colour;
            ctx.fillRect(left, top, Math.max(devicePixelRatio, right - left), bar);
            ctx.globalAlpha = 1;
            ctx.fillStyle = theme.colors.getContrastText(run.colour, 2.2);
            const shows = options.showValue !== 'never' && ctx.measureText(run.text).width < right - left - 8;
            if (shows) ctx.fillText(run.text, (left + right) / 2, top + bar / 2);
          }
        });
      },
    });
  const renderLegend = () =>
    legendOf(options).showLegend ? (
      <VizLayout.Legend placement={legendOf(options).placement}><VizLegend displayMode="list" placement="bottom" items={items} /></VizLayout.Legend>
    ) : null;
  return (
    <GraphNG theme={theme} frames={frames} structureRev={data.structureRev} timeRange={timeRange} timeZone={timeZone || 'utc'} width={width} height={height} legend={legendOf(options)} options={options}
      fields={{ x: (field) => field.type === FieldType.time, y: isState }} prepConfig={prepConfig} propsToDiff={['legend', 'options']} renderLegend={renderLegend}>
      {(config) => <Marks config={config} annotations={data.annotations} theme={theme} />}
    </GraphNG>
  );
}
