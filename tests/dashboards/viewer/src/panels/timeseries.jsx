// SPDX-License-Identifier: MIT
import { FieldType } from '@grafana/data';
import { TimeSeries, useTheme2 } from '@grafana/ui';
import React from 'react';
import { Empty, Marks, drawable, legendOf } from './common.jsx';

const isNumber = (field) => field.type === FieldType.number;

export function TimeSeriesPanel({ data, fieldConfig, timeRange, timeZone, width, height, options }) {
  const theme = useTheme2();
  const frames = React.useMemo(() => drawable(data.series, isNumber), [data.series]);
  if (!frames.length) return <Empty text={fieldConfig.defaults.noValue} />;
  return (
    <TimeSeries frames={frames} structureRev={data.structureRev} timeRange={timeRange} timeZone={timeZone || 'utc'} width={width} height={height} legend={legendOf(options)} options={options}>
      {(config) => <Marks config={config} annotations={data.annotations} theme={theme} />}
    </TimeSeries>
  );
}
