#!/usr/bin/env bash
# A project for one specialist: bash examples/specialists/new.sh NAME ROWS.jsonl [PARAMS.yaml], in the repository's root.
#
# It is a branch of this repository, checked out in a folder beside it. A release is a commit, and going back to one
# checks it out: with a branch each, no specialist moves when another does, and git merges new code into all of them.
set -euo pipefail
name=$1 rows=$(realpath "$2") params=$(realpath "${3:-params.yaml}") cache=$(dvc cache dir)
git worktree add --quiet -b "$name" "../$name"
cd "../$name"
dvc cache dir --local "$cache" # one for all: the base model lies there once
sed -i "/^artifacts:/,/^[a-z]/ s/^  [^ ]*:$/  $name:/" dvc.yaml # the name of its releases
cp "$params" params.yaml.new && mv params.yaml.new params.yaml
rm -rf data/raw data/holdout.lock
mkdir data/raw
cp "$rows" "data/raw/$name.jsonl"
tunetrail repro dedup
tunetrail holdout draw
git add --all
git commit --quiet --message "$name: its rows and its hold-out"
