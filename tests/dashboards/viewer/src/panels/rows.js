// SPDX-License-Identifier: MIT
// A plot with a row for each name instead of a y scale: state timeline and heatmap are drawn on it.
import { UPlotConfigBuilder, measureText } from '@grafana/ui';

export function rowsConfig({ theme, names, timeZone, getTimeRange, series, draw, sparse = false }) {
  const builder = new UPlotConfigBuilder(timeZone);
  const range = () => { const { from, to } = getTimeRange(); return [from.valueOf(), to.valueOf()]; };
  // Names that would touch each other are left out, as on any axis.
  const splits = names.map((_, i) => 1 - (i + 0.5) / names.length);
  const every = (plot) => (sparse ? Math.ceil((14 * names.length * devicePixelRatio) / plot.bbox.height) : 1);
  builder.addScale({ scaleKey: 'x', isTime: true, orientation: 0, direction: 1, range });
  builder.addScale({ scaleKey: 'y', isTime: false, orientation: 1, direction: 1, range: [0, 1] });
  builder.addAxis({ scaleKey: 'x', isTime: true, placement: 'bottom', timeZone, theme, grid: { show: true } });
  builder.addAxis({
    scaleKey: 'y', placement: 'left', theme, grid: { show: false }, ticks: { show: false }, splits,
    size: 16 + Math.max(...names.map((name) => measureText(name, 12).width)),
    values: (plot) => names.map((name, i) => ((names.length - 1 - i) % every(plot) ? '' : name)),
  });
  for (let i = 1; i <= series; i++)
    builder.addSeries({ scaleKey: 'y', theme, pathBuilder: () => null, pointsBuilder: () => null, pxAlign: false, lineWidth: 0, showPoints: 'never', dataFrameFieldIndex: { frameIndex: 0, fieldIndex: i } });
  builder.addHook('draw', (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    draw(plot, ctx, bbox);
    ctx.restore();
  });
  builder.setPrepData(([frame]) => frame.fields.map((field) => field.values));
  return builder;
}
