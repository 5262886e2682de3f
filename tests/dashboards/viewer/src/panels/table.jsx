// SPDX-License-Identifier: MIT
import { cacheFieldDisplayNames } from '@grafana/data';
import { TableNG } from '@grafana/ui/unstable';
import React from 'react';
import { Empty } from './common.jsx';

export function TablePanel({ data, fieldConfig, options, timeRange, width, height }) {
  const frame = data.series[options.frameIndex ?? 0] ?? data.series[0];
  if (!frame?.length) return <Empty text={fieldConfig.defaults.noValue} />;
  // TableNG reads the names from where the app's table panel has put them.
  cacheFieldDisplayNames(data.series);
  return (
    <TableNG data={frame} width={width} height={height} noHeader={options.showHeader === false} initialSortBy={options.sortBy} cellHeight={options.cellHeight ?? 'sm'}
      structureRev={data.structureRev} timeRange={timeRange} fieldConfig={fieldConfig} getActions={() => []} resizable={false} enablePagination={false} enableVirtualization={false} />
  );
}
