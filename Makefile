# Each line is a plain command of lib: a machine without make can type them (README, "Without make").

PYTHON ?= python3
VENV := .venv/bin/python

.PHONY: help env book test full bench growth dist student bundle clean
.DEFAULT_GOAL := help

help:
	@echo "make book    install what is missing, run what changed, build the pages (quick profile)"
	@echo "make test    everything that proves the book: code, notebooks, pages in a browser, links"
	@echo "make env     the environment alone: .venv with the pinned packages"
	@echo "make full    every chapter in the full profile, on the device that is there; resumes"
	@echo "make bench   the benchmarks, beside their peers"
	@echo "make growth  measure how the kernels grow (some minutes, on a quiet machine)"
	@echo "make dist    the built site as one zip that opens offline"
	@echo "make student the chapters as notebooks to work in: every exercise, no solution"
	@echo "make bundle  site, notebooks and packages as one zip, for a room without network"
	@echo "make clean   remove everything that was built (not .venv, not data/results)"

env:
	@$(PYTHON) -m lib.env

book: env
	@$(VENV) -m lib.book build

test: env
	@$(VENV) -m lib.book test

full: env
	@$(VENV) -m lib.run --profile full

bench: env
	@$(VENV) -m benchmarks

growth: env
	@$(VENV) -m benchmarks.growth

dist: env
	@$(VENV) -m lib.book dist

student: env
	@$(VENV) -m lib.student

bundle: book
	@$(VENV) -m lib.bundle

clean:
	@rm -rf _build
