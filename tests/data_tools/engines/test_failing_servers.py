"""The server engine with servers that are slow, busy, broken or dying: what is tried again, and where."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from support.fake_vllm import Fault
from support.server_requests import PROMPTS, expected, generate
from support.waiting import wait_until

from nemo_longpo.data_tools.engines.server import ServerEngine
from nemo_longpo.data_tools.engines.server_pool import Pauses
from nemo_longpo.data_tools.settings import EngineSettings, ServerSettings
from nemo_longpo.errors import InputError


def aborted(answer):
    answer["choices"][0]["finish_reason"] = "abort"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status) for status in (408, 429, 500, 503)),
        Fault(drop=True),
        Fault(seconds=2.0),
        Fault(edit=aborted),
    ],
    ids=["408", "429", "500", "503", "connection dropped", "time-out", "aborted"],
)
def test_temporary_failures_are_retried(fault, servers, load):
    (server,) = servers()
    engine = load(server, timeout=1.0 if fault.seconds else 60.0)
    server.faults.extend([fault, Fault(), fault])
    assert generate(engine, PROMPTS[:5]) == [expected(prompt) for prompt in PROMPTS[:5]]
    late = len(server.bodies) - (5 + 2)
    assert late == 0 or (late > 0 and fault.seconds), "only a busy machine answers late by itself"


@pytest.mark.slow
@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_respected(as_date, servers, load):
    (server,) = servers()

    def be_busy_once(_, number):
        # Dates have whole seconds: two seconds ahead is more than one.
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        if number == 1:
            server.faults.append(Fault(status=503, headers={"Retry-After": date if as_date else "1"}))

    server.on_request = be_busy_once
    engine = load(server, concurrency=1)
    assert generate(engine, PROMPTS[:2]) == [expected(prompt) for prompt in PROMPTS[:2]]
    first, second, *_ = server.times
    assert second - first > 0.9


def test_repeated_failure_ends_the_run(servers, load):
    (server,) = servers()
    server.on_request = lambda body, _: server.faults.extend([Fault(status=500)] * (body["prompt"] == [7, 8]))
    engine = load(server, retries=2, concurrency=1)
    with pytest.raises(InputError, match=r"2 tokens failed 3 times.*500: the server's own words.*parts are kept"):
        generate(engine, [*PROMPTS, [7, 8]])


def test_distant_failures_do_not_add_up(servers, load):
    (server,) = servers()

    def fail_once(body, _):
        if PROMPTS.index(body["prompt"]) % 4 == 0 and server.bodies.count(body) == 1:
            server.faults.append(Fault(status=500))

    server.on_request = fail_once
    assert generate(load(server, retries=2, concurrency=1)) == [expected(prompt) for prompt in PROMPTS]
    assert len(server.bodies) == len(PROMPTS) + 10


@pytest.mark.slow
def test_simultaneous_failures_count_once(servers, load):
    (server,) = servers(seconds=0.05)
    server.faults.extend([Fault(drop=True)] * 8)
    engine = load(server, retries=4, concurrency=8, first_pause=0.5)
    assert generate(engine, PROMPTS[:8]) == [expected(prompt) for prompt in PROMPTS[:8]]


@pytest.mark.slow
def test_server_that_returns_gets_work_again(servers, load):
    both = servers(2, seconds=0.01)
    lost, other = both
    engine = load(*both, concurrency=2)
    back = []  # requests that it had got until then

    def die(_, number):
        if number == 3:
            lost.kill()

    def revive(_, number):
        if number == 50:
            back.append(len(lost.bodies))
            lost.start()

    lost.on_request, other.on_request = die, revive
    prompts = [[*prompt, end] for prompt in PROMPTS for end in range(3, 8)]
    assert generate(engine, prompts) == [expected(prompt) for prompt in prompts]
    assert len(lost.bodies) > back[0]


@pytest.mark.slow
def test_run_continues_when_the_only_server_returns(servers, load):
    (server,) = servers()
    engine = load(server, retries=30)

    def die(_, number):
        if number in (5, 30):
            server.kill()
            server.start()

    server.on_request = die
    assert generate(engine) == [expected(prompt) for prompt in PROMPTS]
    assert len(server.bodies) > len(PROMPTS) + 1


def test_unreachable_server_is_skipped(servers, load):
    there, away = servers(2, seconds=0.01)
    away.kill()
    # Late, when the other one has been given up: one failure is no reason to give up this one too.
    there.on_request = lambda _, number: there.faults.extend([Fault(status=500)] * (number == 35))
    found = generate(load(there, away, retries=2, concurrency=1))
    assert found == [expected(prompt) for prompt in PROMPTS]


def test_unreachable_servers_are_named(servers, load):
    both = servers(2)
    engine = load(*both, retries=2)
    for server in both:
        server.kill()
    with pytest.raises(
        InputError, match=r"no server answers.*same command again \(finished parts are kept\)"
    ) as caught:
        generate(engine)
    assert all(server.url in str(caught.value) for server in both)
    with pytest.raises(InputError, match="no server answers"):
        load(*both, retries=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        *(("86400", 0.5), ("9" * 400, 0.0), ("²", 0.0), ("-5", 0.0), ("1e9", 0.0), ("", 0.0), ("soon", 0.0)),
        *(("Fri, 31 Dec 9999 23:59:59 GMT", 0.5), ("Mon, 01 Jan 0001 00:00:00 GMT", 0.0)),
    ],
)
def test_retry_after_has_a_limit(asked, waited, servers, served_model):
    (server,) = servers()
    addresses = EngineSettings(), ServerSettings(base_url=(server.url,), concurrency=1)
    engine = ServerEngine(served_model, *addresses, Pauses(0.01, 0.05, longest_asked_for=0.5))
    server.faults.append(Fault(status=503, headers={"Retry-After": asked}))
    assert generate(engine, PROMPTS[:2]) == [expected(prompt) for prompt in PROMPTS[:2]]
    assert waited <= server.times[1] - server.times[0]
    assert not waited or server.times[1] - server.times[0] < 60, "the limit, not a day"


@pytest.mark.slow
def test_slow_server_times_out(servers, load):
    """Each byte arrives in time, but not the whole answer."""
    (server,) = servers()
    engine = load(server, timeout=0.5, retries=0)
    server.faults.append(Fault(trickle=0.1))
    with pytest.raises(InputError, match=r"failed 1 times, the last time at .*no answer within the time-out"):
        generate(engine, PROMPTS[:1])
    wait_until(lambda: server.cut)
