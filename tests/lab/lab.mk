# The lab: stock kernels in an emulated machine. Included by the Makefile; see tests/lab/README.md.
LAB_KERNEL ?= 6.12

.PHONY: lab test-lab lab-shell experiment

lab: ## build the lab's images, as far as they are missing
	tests/lab/build

test-lab: lab ## run the lab's jobs on every kernel
	$(or $(wildcard .venv/bin/python),python3) -m pytest -m lab tests/lab

lab-shell: ## a shell on a stock kernel (LAB_KERNEL=6.12)
	@tests/lab/run $(LAB_KERNEL) --shell

experiment: setup lab ## move a guest between two emulated hosts in every way, write docs/results/experiment.md
	.venv/bin/python tests/lab/experiment/run --write
