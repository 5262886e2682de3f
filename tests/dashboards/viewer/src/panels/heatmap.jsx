// SPDX-License-Identifier: MIT
// Heatmap of a histogram's buckets. Grafana's own is part of its app, not of its libraries.
import { FieldType, formattedValueToString, getFieldDisplayName, getValueFormat } from '@grafana/data';
import { GraphNG, useTheme2 } from '@grafana/ui';
import * as chromatic from 'd3-scale-chromatic';
import React from 'react';
import { Empty } from './common.jsx';
import { rowsConfig } from './rows.js';

const isNumber = (field) => field.type === FieldType.number;

export function HeatmapPanel({ data, fieldConfig, timeRange, timeZone, width, height, options }) {
  const theme = useTheme2();
  const frame = data.series.find((found) => found.fields.some(isNumber));
  if (!frame?.length) return <Empty text={fieldConfig.defaults.noValue} />;
  const fields = frame.fields.filter(isNumber);
  const format = getValueFormat(options.yAxis?.unit ?? 'short');
  const bound = (name) => (Number.isFinite(Number(name)) ? formattedValueToString(format(Number(name))) : name);
  const names = fields.map((field) => bound(getFieldDisplayName(field, frame))).reverse();
  const { scheme = 'Oranges', exponent = 0.5, steps = 64, reverse = theme.isDark } = options.color ?? {};
  const colour = chromatic[`interpolate${scheme}`];
  const least = options.filterValues?.le ?? 1e-9;
  const most = options.color?.max ?? Math.max(least, ...fields.flatMap((field) => field.values.filter(Number.isFinite)));

  const prepConfig = (aligned, _, getTimeRange) =>
    rowsConfig({
      theme, names, timeZone, getTimeRange, series: fields.length, sparse: true,
      draw: (plot, ctx, bbox) => {
        const times = aligned.fields[0].values;
        const row = bbox.height / fields.length, step = times.length > 1 ? times[1] - times[0] : 0;
        aligned.fields.slice(1).forEach((field, i) => {
          const top = bbox.top + row * (fields.length - 1 - i);
          times.forEach((time, at) => {
            if (!(field.values[at] > least)) return;
            const share = Math.round(Math.min(field.values[at] / most, 1) ** exponent * (steps - 1)) / (steps - 1);
            const left = plot.valToPos(time - step, 'x', true), right = plot.valToPos(time, 'x', true);
            ctx.fillStyle = colour(reverse ? 1 - share : share);
            ctx.fillRect(left, top, Math.max(2 * devicePixelRatio, right - left - (options.cellGap ?? 1)), row - (options.cellGap ?? 1));
          });
        });
      },
    });
  return (
    <GraphNG theme={theme} frames={[frame]} structureRev={data.structureRev} timeRange={timeRange} timeZone={timeZone || 'utc'} width={width} height={height} legend={{ showLegend: false }} options={options}
      fields={{ x: (field) => field.type === FieldType.time, y: isNumber }} prepConfig={prepConfig} propsToDiff={['options']} renderLegend={() => null} />
  );
}
