// SPDX-License-Identifier: MIT
// node drive.mjs < JOB > REPORTS: has a browser draw boards, one after the other.
// JOB: { prometheus, scrape (ms), from, to (Unix ms), boards: [{ board, variables, png?, width?, from?, to? }], chromium? }
// REPORTS: a list of what the page reported of each board (see main.jsx), with `script_errors` added.
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import puppeteer from 'puppeteer-core';

const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml', '.woff2': 'font/woff2' };
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars'];
const ROW_PIXELS = 38;
const HEAD_PIXELS = 200;
const READY_MS = 60_000;

const job = JSON.parse(await text(process.stdin));
const site = path.join(path.dirname(process.argv[1]), 'site');
const titles = job.boards.map(({ board }) => ({ uid: board.uid, title: board.title.replace(/^.*\/ /, '') }));

const server = http.createServer((request, response) => {
  const { pathname } = new URL(request.url, 'http://localhost');
  const asked = pathname.match(/^\/boards\/(\d+)$/);
  if (asked) {
    response.setHeader('content-type', 'application/json');
    return response.end(JSON.stringify({ board: job.boards[asked[1]].board, others: titles.filter((_, i) => titles.length > 1 && i !== Number(asked[1])) }));
  }
  const file = path.join(site, path.normalize(pathname === '/' ? 'index.html' : pathname));
  return fs.readFile(file, (error, content) => {
    // Grafana's server has more icons than the package.
    const isIcon = error && pathname.startsWith('/public/build/img/icons/');
    if (isIcon) return response.writeHead(200, { 'content-type': TYPES['.svg'] }).end('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"/>');
    response.writeHead(error ? 404 : 200, { 'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream' });
    return response.end(error ? '' : content);
  });
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));

async function draw(browser, { board, variables = {}, png, width = 1600, from, to }, index) {
  const page = await browser.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('console', (message) => message.type() === 'error' && !/Failed to load resource/.test(message.text()) && errors.push(message.text()));
  page.on('response', (response) => response.status() >= 400 && !response.url().includes('/api/v1/') && errors.push(`${response.status()} ${response.url()}`));
  const rows = Math.max(0, ...board.panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  await page.setViewport({ width, height: rows * ROW_PIXELS + HEAD_PIXELS });
  const query = new URLSearchParams({ board: `/boards/${index}`, prometheus: job.prometheus, scrape: job.scrape, from: from ?? job.from, to: to ?? job.to });
  for (const [name, value] of Object.entries(variables)) query.append(`var-${name}`, value);
  await page.goto(`http://127.0.0.1:${server.address().port}/?${query}`);
  let report = { uid: board.uid, panels: [], variables: [], annotations: [], units: [], errors: [], empty: [] };
  try {
    await page.waitForFunction('window.__report', { timeout: job.ready_ms ?? READY_MS });
    report = await page.evaluate(() => window.__report);
  } catch (error) {
    errors.push(`not ready: ${error.message}`);
  }
  if (png) {
    const bottom = await page.evaluate(() => Math.max(...[...document.querySelectorAll('[data-viz-panel-key]')].map((panel) => panel.getBoundingClientRect().bottom)));
    // A viewport that changed its size would have everything drawn anew.
    await page.screenshot({ path: png, captureBeyondViewport: false, clip: { x: 0, y: 0, width, height: Math.ceil(bottom) + 16 } });
  }
  await page.close();
  return { ...report, script_errors: errors };
}

const browser = await puppeteer.launch({ executablePath: job.chromium ?? '/usr/bin/chromium', headless: true, args: FLAGS });
try {
  const reports = [];
  for (const [index, entry] of job.boards.entries()) reports.push(await draw(browser, entry, index));
  process.stdout.write(JSON.stringify(reports));
} finally {
  await browser.close();
  server.close();
}
