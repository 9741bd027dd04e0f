"""The commands as they are typed: serve, smoke and answer on a signed release of llama.cpp, and Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from scratch import Scratch
from served import make_version

from stages.core import paths
from stages.core.files import content_hashes, files_under, read_json, write_json
from stages.ship.release.verify import sign
from stages.weekly.logs import read_logs

ROOT = Path(__file__).parents[3]


def test_a_signed_release_is_served_smoke_tested_and_asked_until_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Scratch(tmp_path / "repository")
    repository.write("dvc.yaml", "stages: {}\n")
    repository.git("init", "--quiet")
    release = make_version(repository.root, "whatever").folder.rename(tmp_path / "release")
    files = {file.relative_to(release).as_posix(): content_hashes(file) for file in files_under(release)}
    files.pop("manifest.json")
    write_json(release / "manifest.json", {**read_json(release / "manifest.json"), "files": files})
    key = ec.generate_private_key(ec.SECP256R1())
    pem, public = tmp_path / "key.pem", tmp_path / "key.pub"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    sign(repository.root, release, pem, repository.root / "release.sig")

    refused = repository.tunetrail("serve", str(release), "--key", str(public))
    assert refused.code == 1
    assert "no release tag records its manifest" in refused.err
    of_it = ["--key", str(public), "--unreleased", "a test"]
    environment = {**os.environ, "CLIENTS_KEY": "a-key", "PYTHONPATH": str(ROOT)}
    words = ["serve", str(release), *of_it, "--context", "256", "--api-key-variable", "CLIENTS_KEY", "--log-text"]
    replies: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "stages.cli", *words],
        cwd=repository.root,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as serving:
        try:
            assert serving.stdout is not None
            found = next(filter(None, (re.search(r"at (http://\S+)/v1$", line.rstrip()) for line in serving.stdout)))
            monkeypatch.setenv("CLIENTS_KEY", "a-key")
            asked = [*of_it, "--api-key-variable", "CLIENTS_KEY"]
            smoke = repository.tunetrail("smoke", found[1], "--release", str(release), *asked)
            assert (smoke.code, smoke.err) == (0, ""), smoke.out
            assert "5 of 5 equal" in smoke.out
            repository.write("in.jsonl", '{"prompt": "hello"}\n')
            words = ["in.jsonl", "out.jsonl", "--url", found[1], "--release", str(release), *asked]
            said = repository.tunetrail("answer", *words)
            assert said.code == 0, said.err
            for more in ({}, {"stream": True}, {"logprobs": True, "top_logprobs": 2}):
                body = {"messages": [{"role": "user", "content": "which words"}], **more}
                headers = {"Authorization": "Bearer a-key", "Content-Type": "application/json"}
                asked_by_hand = urllib.request.Request(
                    f"{found[1]}/v1/chat/completions", json.dumps(body).encode(), headers
                )
                with urllib.request.urlopen(asked_by_hand, timeout=60) as reply:
                    replies.append(reply.read().decode())
        finally:
            serving.send_signal(signal.SIGINT)
    assert serving.returncode == 0
    log = repository.root / paths.REQUESTS
    assert log.stat().st_mode & 0o777 == 0o600
    served, _ = read_logs([log])
    plain, streamed, sure = (one for one in served if one.messages[-1].content == "which words")
    assert plain.output == streamed.output == sure.output == json.loads(replies[0])["choices"][0]["message"]["content"]
    assert plain.log_probability == sure.log_probability
    assert (plain.log_probability or 0) < 0
    assert {plain.release, streamed.release, sure.release} == {json.loads(replies[0])["model"]}
    assert plain.finish == streamed.finish
    assert ["logprobs" in json.loads(replies[n])["choices"][0] for n in (0, 2)] == [False, True]
    row = json.loads((repository.root / "out.jsonl").read_text())
    assert row["answer"]["release"].startswith("sha256-")
    gone = repository.tunetrail("smoke", found[1], "--release", str(release), *of_it)
    assert gone.code == 1
    assert "fails: health" in gone.err
