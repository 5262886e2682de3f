// SPDX-License-Identifier: MIT
// node build.mjs NODE_MODULES OUT: bundles the page into OUT/site and the drivers into OUT/drive.mjs and OUT/pages.mjs.
// The packages are not beside the sources but in the cache, hence nodePaths and createRequire.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const [packages, out] = process.argv.slice(2);
const { build } = createRequire(path.join(packages, 'here.js'))('esbuild');
const site = path.join(out, 'site');
const common = { bundle: true, minify: true, logLevel: 'error', target: 'es2022', format: 'esm', nodePaths: [packages] };

await build({
  ...common,
  entryPoints: ['src/main.jsx'],
  outfile: path.join(site, 'main.js'),
  jsx: 'automatic',
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  loader: { '.svg': 'dataurl', '.ttf': 'dataurl', '.woff': 'dataurl', '.woff2': 'dataurl' },
  alias: {
    // The code editor is 10 MB, and no board has one.
    '@monaco-editor/react': path.resolve('src/stubs/empty.js'),
    'monaco-editor': path.resolve('src/stubs/empty.js'),
    // Published types without the code that goes with them.
    '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen': path.resolve('src/stubs/table.js'),
    'react-router-dom-v5-compat': 'react-router-dom',
  },
});
await build({
  ...common,
  entryPoints: ['src/drive.mjs', 'src/pages.mjs'],
  outdir: out,
  outExtension: { '.js': '.mjs' },
  platform: 'node',
  banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
});

fs.copyFileSync('src/index.html', path.join(site, 'index.html'));
fs.cpSync(path.join(packages, '@grafana/ui/dist/public'), path.join(site, 'public/build'), { recursive: true });
// Grafana's time picker asks for an icon that the package does not have; any other way to write « does.
fs.writeFileSync(
  path.join(site, 'public/build/img/icons/unicons/angle-double-left.svg'),
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M11 7l-5 5 5 5M18 7l-5 5 5 5" fill="none" stroke="currentColor" stroke-width="2"/></svg>'
);
const fonts = path.join(site, 'public/fonts');
for (const directory of ['inter', 'roboto']) fs.mkdirSync(path.join(fonts, directory), { recursive: true });
for (const [weight, name] of [[400, 'Regular'], [500, 'Medium']])
  fs.copyFileSync(path.join(packages, `@fontsource/inter/files/inter-latin-${weight}-normal.woff2`), path.join(fonts, `inter/Inter-${name}.woff2`));
const faces = fs.readFileSync(path.join(packages, '@grafana/ui/dist/esm/themes/GlobalStyles/fonts.mjs'), 'utf8');
for (const [, name] of faces.matchAll(/roboto\/([\w-]+\.woff2)/g))
  fs.copyFileSync(path.join(packages, '@fontsource/roboto-mono/files/roboto-mono-latin-400-normal.woff2'), path.join(fonts, `roboto/${name}`));
