#!/usr/bin/env bash
# retrain.sh BRANCH: run the pipeline on this machine; files go to the DVC remote, the commit to BRANCH.
#
# Any machine will do, and it may be taken away at any moment: run it again, here or on another one. Finished stages come
# back from the cache or the remote, and training goes on from its last checkpoint where $CHECKPOINTS, a folder that
# outlives the machine, is the same.
set -euo pipefail
branch=${1:?name the branch that gets the result: retrain.sh BRANCH}

make setup
export PATH="$PWD/.venv/bin:$PATH"
if [ -n "${CHECKPOINTS:-}" ]; then
  mkdir -p .tunetrail "$CHECKPOINTS"
  [ -L .tunetrail/checkpoints ] || rm -rf .tunetrail/checkpoints
  ln -sfn "$CHECKPOINTS" .tunetrail/checkpoints
fi

remote=$(dvc config core.remote || true)
[ -z "$remote" ] || dvc pull --run-cache --allow-missing
export TUNETRAIL_WAIT="${TUNETRAIL_WAIT:-1800}" # of several machines, until the first comes to its stage `train`
if [ "${SKYPILOT_NODE_RANK:-0}" != 0 ]; then
  dvc repro base augment
  exec python -m stages.tune.train
fi
tunetrail repro
# Before the commit: a commit whose files nobody has is worth nothing.
[ -z "$remote" ] || dvc push --run-cache

git add --update
git add dvc.lock metrics
if git diff --cached --quiet; then
  echo "Nothing changed: dvc.lock is that of $(git rev-parse --short HEAD)"
  exit
fi
verdict=$(tunetrail gates | tail -n 1) || true # a failed gate is a result, too
git -c user.name="${GIT_AUTHOR_NAME:-retrain}" -c user.email="${GIT_AUTHOR_EMAIL:-retrain@localhost}" \
  commit --quiet --message "Retrain: ${verdict:-no verdict}"
if ! git push --quiet origin "HEAD:refs/heads/$branch"; then
  # Somebody pushed meanwhile. Nothing of theirs is overwritten, and nothing of ours is lost.
  branch="$branch-$(git rev-parse --short HEAD)"
  git push --quiet origin "HEAD:refs/heads/$branch"
fi
echo "Pushed to $branch: ${verdict:-no verdict}"
