// SPDX-License-Identifier: MIT
// What panels share: the empty panel, legends, and marks for annotations.
import { FieldType } from '@grafana/data';
import React from 'react';

export const Empty = ({ text }) => (
  <div style={{ display: 'flex', height: '100%', alignItems: 'center', justifyContent: 'center', opacity: 0.7 }}>{text ?? 'No data'}</div>
);

export const legendOf = (options) => ({ showLegend: true, displayMode: 'list', placement: 'bottom', calcs: [], ...options.legend });

const finite = (field) => (field.type === FieldType.number ? { ...field, values: field.values.map((value) => (Number.isFinite(value) ? value : null)) } : field);

/** Frames that can be drawn over time: fields of `isShown` beside their time, NaN and infinities as null. */
export const drawable = (series, isShown) =>
  series
    .map((frame) => ({ ...frame, fields: frame.fields.filter((field) => field.type === FieldType.time || isShown(field)).map(finite) }))
    .filter((frame) => frame.length && frame.fields.some((field) => field.type === FieldType.time) && frame.fields.some(isShown));

const column = (frame, name) => frame.fields.find((field) => field.name === name)?.values ?? [];

/** A dashed line with a foot for each annotation; put inside a GraphNG, which gives `config`. */
export function Marks({ config, annotations, theme }) {
  const latest = React.useRef(annotations);
  const drawn = React.useRef(null);
  latest.current = annotations;
  React.useEffect(() => drawn.current?.redraw(false), [annotations]);
  React.useLayoutEffect(() => {
    config.addHook('init', (plot) => (drawn.current = plot));
    config.addHook('destroy', () => (drawn.current = null));
    config.addHook('draw', (plot) => {
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height + 8 * devicePixelRatio);
      ctx.clip();
      for (const frame of latest.current ?? []) {
        const colours = column(frame, 'color');
        column(frame, 'time').forEach((time, i) => {
          const x = Math.round(plot.valToPos(time, 'x', true)) + 0.5;
          if (x < bbox.left || x > bbox.left + bbox.width) return;
          ctx.strokeStyle = ctx.fillStyle = theme.visualization.getColorByName(colours[i]);
          ctx.lineWidth = devicePixelRatio;
          ctx.setLineDash([4, 3]);
          ctx.globalAlpha = 0.75;
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
          const foot = 5 * devicePixelRatio, bottom = bbox.top + bbox.height;
          ctx.globalAlpha = 1;
          ctx.beginPath();
          ctx.moveTo(x, bottom);
          ctx.lineTo(x - foot, bottom + foot);
          ctx.lineTo(x + foot, bottom + foot);
          ctx.fill();
        });
      }
      ctx.restore();
    });
  }, [config]);
  return null;
}
