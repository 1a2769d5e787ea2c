"""Which names are those of secrets: ``data.hf_token`` and ``apiKey`` are, ``num_tokens`` is not."""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import Final

#: ``APIKey`` is api key, ``aws_secret_access_key`` four words; digits tell names of a kind apart.
_WORD: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
#: Between the parts of a path: ``data.init_args.token``, ``headers[0].cookie``, ``db/password``.
_PATH: Final = re.compile(r"[./\[\]:]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: A secret wherever they stand in a name, and also several of them: ``db_passwords``.
_SECRET: Final = _words(
    "password passwd passphrase passcode passkey passwort pwd psw secret credential cred "
    "authorization bearer jwt otp totp dsn webhook connstr apikey authkey authtoken accesstoken"
)
#: The end of names that are written in one: ``dbpassword``.
_ENDS: Final = (
    *("password", "passwd", "passphrase", "secret", "credential", "apikey", "accesskey"),
    *("secretkey", "privatekey", "accountkey", "sharedkey", "sessionkey", "authtoken"),
    *("accesstoken", "refreshtoken", "bearertoken", "hftoken", "connectionstring"),
)
#: A key after one of these is one that opens something; ``image_key`` names a part of a batch.
_OPENS: Final = _words(
    "api access secret private session auth encryption signing ssh account shared master service "
    "license subscription consumer app application deploy sas hmac rsa gpg pem fernet wandb "
    "openai anthropic hf huggingface kaggle aws azure gcp google"
)
#: Other pairs that are secrets together.
_PAIRS: Final = {("connection", "string"), ("conn", "string"), ("conn", "str")}
#: A secret as the last word, or before words for its value; elsewhere an option about it.
_LAST: Final = _words("token auth oauth pat pw cookie sas sessionid")
_VALUE: Final = _words(
    "value string str text secret key header hash base64 raw data plain plaintext default new old "
    "prod production dev test main backup github gitlab hf huggingface wandb openai"
)
#: Tokens of a sequence, not of an account.
_OF_MODELS: Final = _words(
    "cls class classification mask pad padding eos bos sep unk special start end stop begin first "
    "last reg register dist distill distillation image img text visual vision audio video per "
    "next prev previous global local query prompt num max min n pooled pool cross patch mean each "
    "single oov blank memory summary add no with extra by prefix suffix head decoder encoder "
    "action latent time attention learnable trainable sink word sub subword input output target "
    "source src tgt"
)
#: ``tokens`` after one of these are those of accounts.
_OF_ACCOUNTS: Final = _words(
    "auth access api refresh bearer session security oauth personal sas github gitlab hf "
    "huggingface wandb secret csrf service deploy"
)
#: A password after one of these; ``first_pass`` is none.
_PASS: Final = _words(
    "db user smtp ftp sftp sql mysql pg postgres redis mongo admin root login proxy http https "
    "ssh mail email imap server host key auth account basic"
)
#: After the name of a secret: what is about it.
_ABOUT: Final = _words(
    "file files filename path paths dir directory folder env var variable name mode type kind "
    "method scheme length len size dim count num min max ttl expiry expires expiration lifetime "
    "timeout policy prompt required enabled provider manager class format encoding domain field "
    "column label url uri endpoint host port"
)
_PLACES: Final = _words("url uri endpoint")
#: Before it: how many there are.
_COUNTS: Final = _words("n num number count total max min")


class Secrecy(IntEnum):
    """How sure it is that an option's value is a secret."""

    NONE = 0
    LIKELY = 1  # a short number or a usual word is none
    SURE = 2


@lru_cache(maxsize=4096)
def secrecy_of(name: str) -> Secrecy:
    """Tell whether the value of an option is a secret, by its name and by those that it is in.

    Args:
        name: As in ``data.init_args.storage.aws_secret_access_key`` or ``X-Api-Key``.
    """
    parts = [words for part in _PATH.split(name) if (words := _words_of(part))]
    found, above = Secrecy.NONE, False
    for words in parts:
        own = _of_words(words)
        above, found = found > Secrecy.NONE and own == Secrecy.NONE, max(found, own)
    if not above:
        return found
    if _ABOUT.issuperset(parts[-1]):  # credentials.type, but webhook.url
        return _of_words(parts[-2] + parts[-1])
    return Secrecy.LIKELY


def _words_of(part: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(part))


def _of_words(words: tuple[str, ...]) -> Secrecy:
    for i, word in enumerate(words):
        before, after = words[i - 1] if i else "", words[i + 1 :]
        one = word if word in _LAST else word.removesuffix("s")
        of_webhook = one == "webhook" and after[:1] and after[0] in _PLACES
        if before in _COUNTS or (after and after[0] in _ABOUT and not of_webhook):
            continue
        opens = (one == "key" and before in _OPENS) or (before, one) in _PAIRS
        if opens or one in _SECRET or one.endswith(_ENDS):
            return Secrecy.SURE
        if word == "pass" and not after and (not before or before in _PASS):
            return Secrecy.SURE
        if one in _LAST and (not after or after[0] in _VALUE) and _is_access(before, word):
            return Secrecy.LIKELY
    return Secrecy.NONE


def _is_access(before: str, word: str) -> bool:
    if word == "tokens":
        return before in _OF_ACCOUNTS
    return word != "token" or before not in _OF_MODELS
