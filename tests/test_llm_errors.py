"""Errors are classified once, at the border; messages are bounded and hold no key."""

from __future__ import annotations

import socket
from email.utils import formatdate

import orjson
import pytest
from pydantic import SecretStr

from synth_assets.errors import EndpointError
from synth_assets.llm.client import Client
from synth_assets.llm.endpoint import Endpoint, normalised_url
from synth_assets.llm.errors import (
    CallFailed,
    ErrorKind,
    Failure,
    failure_of_status,
    not_an_answer,
    retry_after_seconds,
)
from tests.llm_support import endpoint_of, request, run
from tests.openai_server import FaultAction, running_server

NOW = 1_700_000_000.0


def of_status(status: int, code: str | None = None, message: str = "no") -> Failure:
    body = orjson.dumps({"error": {"message": message, "code": code, "type": None}})
    return failure_of_status(status, {}, body, now_s=NOW)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 422])
def test_client_errors_are_permanent(status: int) -> None:
    assert of_status(status).kind is ErrorKind.PERMANENT


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 529])
def test_server_errors_are_transient(status: int) -> None:
    assert of_status(status).kind is ErrorKind.TRANSIENT


def test_too_many_requests_is_throttling() -> None:
    failure = of_status(429, "rate_limit_exceeded")
    assert (failure.kind, failure.congested) == (ErrorKind.THROTTLED, True)


def test_a_used_up_quota_is_permanent_though_its_status_is_429() -> None:
    failure = of_status(429, "insufficient_quota")
    assert (failure.kind, failure.whole_endpoint) == (ErrorKind.PERMANENT, True)


def test_a_bad_request_speaks_for_itself_only() -> None:
    assert not of_status(400).whole_endpoint
    assert of_status(401).whole_endpoint


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "1e9999"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_retry_after_is_read_as_seconds_or_as_a_date(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after_seconds(headers, now_s=NOW) == seconds


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"error": 3}', b"\xff\xfe"])
def test_an_error_body_of_any_kind_is_survived(body: bytes) -> None:
    assert failure_of_status(500, {}, body, now_s=NOW).kind is ErrorKind.TRANSIENT


def test_details_are_one_bounded_printable_line() -> None:
    detail = of_status(400, message="a\nb\x1b[31m" + "x" * 10_000).detail
    assert detail.isprintable()
    assert len(detail) < 400


def test_a_redirect_is_not_followed_but_named() -> None:
    failure = failure_of_status(307, {"location": "https://elsewhere/v1"}, b"", now_s=NOW)
    assert failure.kind is ErrorKind.PERMANENT
    assert "elsewhere" in failure.detail


def test_a_web_page_with_status_200_is_not_an_answer() -> None:
    assert not_an_answer(b"<html>hello</html>").kind is ErrorKind.MALFORMED


def failed_call(endpoint: Endpoint, *, timeout_s: float = 5.0) -> Failure:
    async def call() -> Failure:
        async with Client(endpoint, timeout_s=timeout_s, connect_timeout_s=timeout_s) as client:
            with pytest.raises(CallFailed) as caught:
                await client.call("chat", request(1).payload())
            return caught.value.failure

    failure: Failure = run(call())
    return failure


def test_a_refused_connection_is_unreachable_not_a_timeout() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        failure = failed_call(Endpoint(f"http://127.0.0.1:{port}/v1", "m", SecretStr("k")))
    assert (failure.code, failure.unreached) == ("unreachable", True)


def test_an_unknown_host_is_unreachable() -> None:
    failure = failed_call(Endpoint("http://no-such-host.invalid/v1", "m", SecretStr("k")))
    assert failure.code == "unreachable"


@pytest.mark.parametrize(("fault", "code"), [("reset", "reset"), ("slow_body", "timeout")])
def test_broken_connections_and_slow_bodies_are_told_apart(fault: str, code: str) -> None:
    def strike(_: object) -> FaultAction:
        return FaultAction(fault, seconds=4.0)  # type: ignore[arg-type]

    with running_server(fault=strike) as server:
        failure = failed_call(endpoint_of(server), timeout_s=0.5)
    assert (failure.kind, failure.code) == (ErrorKind.TRANSIENT, code)
    assert failure.may_be_billed


def test_the_key_is_in_no_representation() -> None:
    endpoint = Endpoint("http://localhost:1/v1", "m", SecretStr("sk-planted-123"))
    assert "planted" not in f"{endpoint!r} {endpoint} {endpoint.host}"
    assert endpoint.scrubbed("echo sk-planted-123!") == "echo ***!"


def test_environment_variables_name_the_endpoint() -> None:
    env = {"MY_URL": " https://Models.Example:443/v1/ ", "MY_KEY": "abc\n"}
    endpoint = Endpoint.from_env(
        model="m", base_url_env="MY_URL", api_key_env="MY_KEY", environ=env
    )
    assert endpoint.base_url == endpoint.identity == "https://models.example/v1"
    assert endpoint.api_key.get_secret_value() == "abc"


def test_a_missing_variable_is_named_with_its_fix() -> None:
    with pytest.raises(EndpointError, match=r"OPENAI_BASE_URL is not set(.|\n)*export OPENAI_BASE"):
        Endpoint.from_env(model="m", environ={})
    with pytest.raises(EndpointError, match="OPENAI_API_KEY is not set"):
        Endpoint.from_env(model="m", environ={"OPENAI_BASE_URL": "https://host/v1"})


def test_a_server_on_this_machine_needs_no_key() -> None:
    endpoint = Endpoint.from_env(model="m", environ={"OPENAI_BASE_URL": "http://127.0.0.1:8000/v1"})
    assert endpoint.on_this_machine


@pytest.mark.parametrize("key", ["with blank", "tab\tbed", "pl\u00e4nted", ""])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(EndpointError) as caught:
        Endpoint("https://host/v1", "m", SecretStr(key))
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "host/v1",
        "ftp://host",
        "https://",
        "https://me:pw@host/v1",
        "https://h/v1?key=pw",
        "http://h:x",
    ],
)
def test_an_address_that_is_none_or_carries_secrets_is_refused(url: str) -> None:
    with pytest.raises(EndpointError) as caught:
        normalised_url(url)
    assert "pw" not in str(caught.value)
