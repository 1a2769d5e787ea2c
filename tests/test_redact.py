"""What counts as a secret, by name, in a URL and by shape, and what only looks like one."""

from __future__ import annotations

import ast
import dataclasses
import json
import shlex
from argparse import Namespace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import yaml

from ncmonitor import redact
from ncmonitor.errors import InputError
from ncmonitor.redact import MARK, hidden_options, redacted, redacted_text, redacted_words
from ncmonitor.secret_names import secrecy_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the secrets of other tests."""
    monkeypatch.setattr(redact, "_KNOWN", set())


SECRET_NAMES = """
token data.token hf_token HF_TOKEN hfToken OAuthToken accessToken refresh_token use_auth_token
data.init_args.storage.aws_secret_access_key aws_access_key_id apiKey APIKey api-key X-Api-Key
model.api_key openai_key WANDB_API_KEY password db_password dbpassword password2 passwd pwd pw
smtp_pass passphrase client_secret secret_value data.secrets.db session_key private_key privateKey
access_key secret_key account_key credentials credentials.json auth http_auth Authorization bearer
headers.Authorization PRIVATE-TOKEN X-Auth-Token cookie cookies dsn connection_string webhook
webhook_url webhook.url sas sas_token access_tokens github_pat auth_token auth.init_args.value
"""
HONEST_NAMES = """
tokens max_tokens num_tokens n_tokens max_new_tokens tokens_per_batch token_dim token_type token_ids
tokenizer model.tokenizer.name tokenization token_mixer token_drop cls_token pad_token class_token
eos_token_id reduce author authors authority key keys key_dim label_key image_key dataloader_key
public_key keypoints hotkey monkey turkey passes first_pass forward_pass two_pass passthrough
pass_through compass bypass passband pathway patience num_passwords password_file token_path
auth_mode auth_type credentials.type credentials_file cookie_name api_key_env secretary session_id
data.root class_names
"""


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_the_value_of_this_name_is_a_secret(name: str) -> None:
    assert secrecy_of(name)
    assert redacted({name: "xK2-93vb"}) == {name: MARK}
    assert redacted_words([f"--{name}", "xK2-93vb"]) == [f"--{name}", MARK]
    assert redacted_words([f"--{name}=xK2-93vb"]) == [f"--{name}={MARK}"]


@pytest.mark.parametrize("name", HONEST_NAMES.split())
def test_the_value_of_this_name_is_kept(name: str) -> None:
    assert not secrecy_of(name)
    words = [f"--{name}", "xK2-93vb", f"--{name}=mean"]
    assert redacted_words(words) == words


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"data": {"init_args": {"token": "a"}}}, {"data": {"init_args": {"token": MARK}}}),
        ({"auth": ["bob", "pw"]}, {"auth": [MARK, MARK]}),
        ({"auth": {"user": "bob", "x": "y"}}, {"auth": {"user": MARK, "x": MARK}}),
        (
            {"credentials": {"class_path": "a.B", "init_args": {"value": "x"}}},
            {"credentials": {"class_path": "a.B", "init_args": {"value": MARK}}},
        ),
        ({"kwargs": '{"token": "a", "n": 3}'}, {"kwargs": '{"token": "<redacted>", "n": 3}'}),
        ({"kwargs": "{token: a, n: 3}"}, {"kwargs": "{token: <redacted>, n: 3}"}),
        ({"run": "curl --token 'a b' -q"}, {"run": "curl --token '<redacted>' -q"}),
        ({"args": ["--token", "a", "-v"]}, {"args": ["--token", MARK, "-v"]}),
        ({"env": ["HF_TOKEN=a", "N=1"]}, {"env": [f"HF_TOKEN={MARK}", "N=1"]}),
        ([{"name": "HF_TOKEN", "value": "a"}], [{"name": "HF_TOKEN", "value": MARK}]),
        ({"headers": ["Authorization: Basic YWJj"]}, {"headers": [f"Authorization: {MARK}"]}),
        ({"pairs": [["token", "a1"], ["x", "y"]]}, {"pairs": [["token", MARK], ["x", "y"]]}),
        ({"password": 123456}, {"password": MARK}),
        ({"password": b"ab"}, {"password": MARK}),
        ({"user": "bob:pw"}, {"user": MARK}),
        ({"root": PurePosixPath("s3:/k:v@b")}, {"root": PurePosixPath("s3:/k:v@b")}),
        ({"args": Namespace(token="a", n=1)}, {"args": Namespace(token=MARK, n=1)}),
        ({"https://u:p@h": 1}, {"https://<redacted>@h": 1}),
    ],
)  # fmt: skip
def test_secrets_are_found_inside_of_options(options: Any, expected: Any) -> None:
    assert redacted(options) == expected
    assert redacted(expected) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"token": None, "password": "", "use_auth_token": True, "api_key": "${oc.env:KEY}"},
        {"token": 12, "auth": "none", "model": {"token": "cls"}},
        {"class_names": ["secret", "public"], "lr": 0.1, "n": (1, 2), "x": {1, 2}, 3: "y"},
        {"layers": ["net.0", "net.1"], "reduce": "tokens", "root": "git@github.com:a/b"},
        {"url": "https://host:8080/a@b", "other": "hf://datasets/x@main", "ssh": "ssh://git@h/a"},
        {"image": "repo:tag@sha256:abc", "mail": "mailto:bob@h.org", "to": "bob@h.org"},
        {"name": "sk-learn", "task": "task-1234567890123456789", "f": "hf_transformers_library"},
    ],
)
def test_what_is_no_secret_is_left_as_it_is(options: dict[Any, Any]) -> None:
    assert redacted(options) is options


def test_objects_are_left_alone_but_for_the_secrets_in_them() -> None:
    @dataclasses.dataclass
    class Store:
        token: str
        size: int = 3

    tensor, store = torch.ones(2), Store("abc")
    found = redacted({"w": tensor, "store": store, "f": print, "credentials": store})
    assert found["w"] is tensor
    assert found["f"] is print
    assert found["store"] == Store(MARK)
    assert store.token == "abc"
    assert found["credentials"] == Store(MARK)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no postgres://bob:s3cr/et@h:54/db", "no postgres://<redacted>@h:54/db"),
        ("https://a1b2c3@github.com/a", "https://<redacted>@github.com/a"),
        ("http://u:p@ss@h", "http://<redacted>@h"),
        ("bob:hunter2@example.org/x", "<redacted>@example.org/x"),
        ("mysql:bob:pw@host", "mysql:<redacted>@host"),
        (
            "https://h/x?token=a&n=1&sig=b&X-Amz-Signature=c#access_token=d",
            "https://h/x?token=<redacted>&n=1&sig=<redacted>&X-Amz-Signature=<redacted>"
            "#access_token=<redacted>",
        ),
        ("Net(token='a b', n=1)", "Net(token='<redacted>', n=1)"),
        ("{'token': 'a', 'n': 1}", "{'token': '<redacted>', 'n': 1}"),
        ('{"x": {"password": "a"}}', '{"x": {"password": "<redacted>"}}'),
        ("{'auth': ['bob', 'pw'], 'n': 1}", "{'auth': <redacted>, 'n': 1}"),
        ("Server=x;Password=a,b)c;Db=1", "Server=x;Password=<redacted>;Db=1"),
        ("got Bearer abcdef123456", "got Bearer <redacted>"),
        ("key ghp_abcdefghijklmnop1234567890.", "key <redacted>."),
        ("AKIAIOSFODNN7EXAMPLE is unknown", "<redacted> is unknown"),
        ("sk-proj-Abc123def456ghi789", "<redacted>"),
        ("https://hooks.slack.com/services/T0/B0/Xyz123", "https://hooks.slack.com/<redacted>"),
        (
            "a\n-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nb",
            "a\n<redacted>\nb",
        ),
        ("commit 0123456789abcdef0123456789abcdef01234567", None),
        ("data.token: expected a number; pass token= one", None),
        ("give --data.token again", None),
    ],
)
def test_a_message_is_told_without_its_secrets(text: str, expected: str | None) -> None:
    assert redacted_text(text) == (text if expected is None else expected)


def test_what_was_left_out_by_name_is_left_out_of_later_messages() -> None:
    assert redacted_text("no user of xK2-93vb here") == "no user of xK2-93vb here"
    redacted({"password": "xK2-93vb", "auth": "kerberos"})
    assert redacted_text("no user of xK2-93vb here") == f"no user of {MARK} here"
    assert redacted_text("xK2-93vbx, kerberos") == "xK2-93vbx, kerberos"
    assert str(InputError("got xK2-93vb")) == f"got {MARK}"


def test_a_command_can_be_typed_again_with_the_secrets_given_again() -> None:
    words = ["fit", "x", "--data.token", "it's a b", "--url=https://u:p@h", "--n", "-1", "A_KEY=x"]
    shown = shlex.join(redacted_words(words))
    assert shown == f"fit x --data.token '{MARK}' '--url=https://{MARK}@h' --n -1 A_KEY=x"
    assert redacted({"command": shown}) == {"command": shown}
    assert hidden_options(shlex.split(shown)) == ["--data.token", "--url"]
    whole = "ncmonitor " + shlex.join(words)
    assert redacted({"command": whole}) == {"command": f"ncmonitor {shown}"}


def test_the_mark_is_plain_text_in_yaml_and_json() -> None:
    for text in (yaml.safe_dump({"a": MARK}), json.dumps({"a": MARK})):
        assert yaml.safe_load(text) == {"a": MARK}


def test_no_option_of_a_recipe_is_taken_for_a_secret() -> None:
    configs = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
    assert configs
    for path in configs:
        options = yaml.safe_load(path.read_text())
        assert redacted(options) is options, path.name


def test_no_message_of_this_package_is_taken_for_a_secret() -> None:
    for folder in ("ncmonitor", "callbacks", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    text = ast.unparse(node)
                    assert redacted_text(text) == text, path
