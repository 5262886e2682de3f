// SPDX-License-Identifier: MIT
// node pages.mjs < JOB > REPORTS: loads pages of a web server as they are, and says what a reader would see.
// JOB: { chromium?, pages: [{ url, width, dark, png? }] }
// REPORTS: a list of { status, title, text, links, wide, inner, background, ink, requests, errors, dialogs }
import { text } from 'node:stream/consumers';
import puppeteer from 'puppeteer-core';

const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars'];

const job = JSON.parse(await text(process.stdin));

async function look(browser, { url, width, dark, png }) {
  const page = await browser.newPage();
  const errors = [];
  const requests = [];
  let dialogs = 0;
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('console', (message) => message.type() === 'error' && errors.push(message.text()));
  page.on('request', (request) => requests.push(request.url()));
  page.on('dialog', (dialog) => { dialogs += 1; return dialog.dismiss(); });
  await page.setViewport({ width, height: 800 });
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }]);
  const response = await page.goto(url, { waitUntil: 'load' });
  const found = await page.evaluate(() => {
    const inner = document.documentElement.clientWidth;
    const over = [...document.querySelectorAll('body *')].filter((e) => {
      const scrolls = e.closest('.drawing');
      return !scrolls && e.getBoundingClientRect().right > inner + 0.5;
    });
    const style = getComputedStyle(document.body);
    return {
      title: document.title,
      text: document.body.innerText,
      links: [...document.links].map((a) => a.getAttribute('href')),
      inner,
      wide: [document.documentElement.scrollWidth, ...over.map((e) => `${e.tagName} ${e.textContent.slice(0, 60)}`)],
      background: style.backgroundColor,
      ink: style.color,
      elements: [...new Set([...document.querySelectorAll('*')].map((e) => e.localName))],
      handlers: [...document.querySelectorAll('*')].flatMap((e) => [...e.attributes].map((a) => a.name)).filter((name) => name.startsWith('on')),
    };
  });
  if (png) await page.screenshot({ path: png, fullPage: true });
  await page.close();
  return { status: response.status(), ...found, requests, errors, dialogs };
}

const browser = await puppeteer.launch({ executablePath: job.chromium ?? '/usr/bin/chromium', headless: true, args: FLAGS });
try {
  const reports = [];
  for (const entry of job.pages) reports.push(await look(browser, entry));
  process.stdout.write(JSON.stringify(reports));
} finally {
  await browser.close();
}
