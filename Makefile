.DEFAULT_GOAL := help
.PHONY: help setup run test test-unit lint boards layout reference site format

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install what is missing (a second when nothing is)
	@tools/setup

run: setup ## trace a real live migration on this machine
	@.venv/bin/vftrace demo

# First the fuzzers, which take the same time however many run at once; then on all processors what can stand it; then the
# rest one by one. All are run, whatever the ones before found.
test: setup lint ## lint, types, layers, then all tests
	@.venv/bin/pytest tests/fuzz -n 4; fuzz=$$?; \
	.venv/bin/pytest -m 'not alone' --ignore=tests/fuzz -n auto --dist worksteal --durations 40; first=$$?; \
	.venv/bin/pytest -m alone --durations 40 && exit $$((fuzz | first))

test-unit: setup ## the tests that need neither BPF nor KVM
	.venv/bin/pytest -m 'not host and not lab'

lint: setup ## ruff, mypy --strict, who may import whom, clang-format, licences, words
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/clang-format --dry-run -Werror bpf/*.h bpf/*.c
	.venv/bin/reuse lint --quiet
	.venv/bin/python -m tests.words --docstrings

boards: setup ## make the Grafana boards again from dashboards/boards
	.venv/bin/python -m dashboards.boards

layout: setup ## make vftrace/events/layout.py again from bpf/wire.h
	.venv/bin/python tools/layout.py

reference: setup ## make the generated pages of docs/reference again
	.venv/bin/python -m vftrace.outputs.exporter.doc > docs/reference/metrics.md
	PYTHONPATH=. .venv/bin/python tools/reference.py

site: setup ## the documentation as HTML, in build/site
	.venv/bin/mkdocs build --strict --quiet

format: setup ## let ruff and clang-format format the code
	.venv/bin/ruff format .
	.venv/bin/clang-format -i bpf/*.h bpf/*.c

-include tests/lab/lab.mk
