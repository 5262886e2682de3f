// SPDX-License-Identifier: MIT
// Field options and transformations: Grafana's server-side app fills these registries, with these processors.
import {
  dataLinksOverrideProcessor, displayNameOverrideProcessor, identityOverrideProcessor, standardEditorsRegistry, standardFieldConfigEditorRegistry,
  standardTransformers, standardTransformersRegistry, thresholdsOverrideProcessor, unitOverrideProcessor, valueMappingsOverrideProcessor,
} from '@grafana/data';

export const field = (id, more = {}) => ({ id, path: id, name: id, editor: () => null, override: () => null, process: identityOverrideProcessor, shouldApply: () => true, ...more });

const NO_THRESHOLDS = { mode: 'absolute', steps: [{ value: -Infinity, color: 'green' }, { value: 80, color: 'red' }] };

export function fillRegistries() {
  standardEditorsRegistry.setInit(() => []);
  standardFieldConfigEditorRegistry.setInit(() => [
    field('displayName', { process: displayNameOverrideProcessor }),
    field('unit', { process: unitOverrideProcessor }),
    field('thresholds', { process: thresholdsOverrideProcessor, defaultValue: NO_THRESHOLDS }),
    field('mappings', { process: valueMappingsOverrideProcessor, defaultValue: [] }),
    field('links', { process: dataLinksOverrideProcessor }),
    ...['min', 'max', 'decimals', 'color', 'noValue', 'actions', 'filterable', 'fieldMinMax', 'description'].map((id) => field(id)),
  ]);
  // The list has some of them twice.
  const transformers = new Map(Object.values(standardTransformers).map((found) => [found.id, found]));
  standardTransformersRegistry.setInit(() => [...transformers.values()].map((found) => ({ id: found.id, name: found.name, transformation: found, editor: () => null })));
}
