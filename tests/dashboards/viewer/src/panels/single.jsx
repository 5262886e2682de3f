// SPDX-License-Identifier: MIT
// Panels that show one value for each series: stat and bar gauge.
import { VizOrientation, getDisplayValueAlignmentFactors, getFieldDisplayValues } from '@grafana/data';
import { BarGauge, BigValue, VizRepeater, useTheme2 } from '@grafana/ui';
import React from 'react';

function repeated(Value, spacing, more) {
  return function Single(panel) {
    const theme = useTheme2();
    const { data, fieldConfig, options, replaceVariables, timeZone, width, height, renderCounter } = panel;
    const getValues = () =>
      getFieldDisplayValues({
        fieldConfig, reduceOptions: { calcs: ['lastNotNull'], values: false, ...options.reduceOptions }, replaceVariables, theme, data: data.series, timeZone,
        sparkline: (options.graphMode ?? 'none') !== 'none',
      });
    return (
      <VizRepeater getValues={getValues} getAlignmentFactors={getDisplayValueAlignmentFactors} source={data} renderCounter={renderCounter} width={width} height={height}
        orientation={options.orientation || VizOrientation.Auto} itemSpacing={spacing} {...more(options)} renderValue={(value) => <Value panel={panel} theme={theme} {...value} />} />
    );
  };
}

const Big = ({ panel: { options, timeRange }, theme, value, width, height, alignmentFactors, count }) => (
  <BigValue theme={theme} value={value.display} width={width} height={height} count={count} alignmentFactors={alignmentFactors}
    sparkline={value.sparkline && { ...value.sparkline, timeRange }} colorMode={options.colorMode ?? 'value'} graphMode={options.graphMode ?? 'area'}
    justifyMode={options.justifyMode ?? 'auto'} textMode={options.textMode ?? 'auto'} text={options.text} disableWideLayout={options.wideLayout === false} />
);
const Bar = ({ panel: { options }, theme, value, width, height, alignmentFactors, count, orientation }) => (
  <BarGauge theme={theme} value={value.display} width={width} height={height} orientation={orientation} field={value.field} text={options.text}
    display={value.view?.getFieldDisplayProcessor(value.colIndex)} displayMode={options.displayMode ?? 'gradient'} itemSpacing={8} lcdCellWidth={12}
    alignmentFactors={count > 1 ? alignmentFactors : undefined} showUnfilled={options.showUnfilled ?? true} valueDisplayMode={options.valueMode ?? 'color'}
    namePlacement={options.namePlacement ?? 'auto'} isOverflow={false} />
);

const AUTO = { minVizHeight: 16, minVizWidth: 8, maxVizHeight: 300 };
export const StatPanel = repeated(Big, 3, () => ({ autoGrid: true }));
export const BarGaugePanel = repeated(Bar, 10, ({ sizing, minVizWidth, minVizHeight, maxVizHeight }) => (sizing === 'manual' ? { minVizWidth, minVizHeight, maxVizHeight } : AUTO));
