"""``wals-gpu plan``: what a fit takes, from its sizes alone."""

import json

import pytest

from wals_gpu.distributed.plan import fit_cost, measured_rate

pytest_plugins = ["cli_fixtures"]

SIZES = ("--users", "1e7", "--items", "1e6", "--entries", "1e9", "--rate", "30e9", "--threads", "32")


def test_the_network_decides(run):
    status, slow, _ = run("plan", *SIZES, "--solver", "cg", "--bandwidth", "10Gb")
    assert status == 0 and "One machine is faster" in slow
    _, fast, _ = run("plan", *SIZES, "--solver", "cholesky", "--bandwidth", "100Gb", "--ranks", "16")
    assert "16 machines are" in fast and "times as fast as one" in " ".join(fast.split())


def test_json_has_the_same_numbers(run):
    _, out, _ = run("plan", *SIZES, "--solver", "cg", "--json")
    found = json.loads(out)
    cost = fit_cost(10**7, 10**6, 10**9, 128, 8, solver="cg", threads=32, rate=30e9)
    assert found["ranks"] == json.loads(json.dumps(cost.to_dict()))
    assert found["one"]["sent"] == 0 and found["one"]["memory"] > found["ranks"]["memory"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--users", "0"), "--users must be a whole number of at least 1, such as 40e6, got '0'"),
        (("--users", "1.5"), "--users must be a whole number"),
        (("--users", "1e400"), "--users must be a whole number of at least 1, such as 40e6, got '1e400'"),
        (("--rate", "0"), "--rate must be a finite number > 0, got 0.0"),
        (("--bandwidth", "3Tb"), "--bandwidth must be bits a second above 0, such as 25Gb or 1e10, got '3Tb'"),
        (("--bandwidth", "-1"), "--bandwidth"),
    ],
)
def test_bad_sizes_are_named(run, options, text):
    status, _, errors = run("plan", *SIZES, *options)
    assert status == 2 and text in errors


@pytest.mark.parametrize("solver", ["cholesky", "cg", "subspace"])
def test_costs_are_divided_and_traffic_is_not(solver):
    one, two, eight = (fit_cost(10**6, 10**5, 10**8, 64, n, solver=solver, bandwidth=1e10) for n in (1, 2, 8))
    assert one.sent == 0 and one.network == 0
    assert one.arithmetic == pytest.approx(8 * eight.arithmetic)
    assert eight.entries == pytest.approx(one.entries / 8, rel=1e-6)
    # Each rank sends its part to N - 1 others along the ring: (N - 1) / N of both tables, and slabs.
    both = 1_100_000 * 64 * 4
    assert both / 2 <= two.sent <= both / 2 + 32 * 64**2 * 8
    assert both * 7 / 8 <= eight.sent <= both * 7 / 8 + 2 * 32 * 64**2 * 8


def test_a_halo_is_a_share_of_the_table():
    whole = fit_cost(10**6, 10**5, 10**8, 64, 32)
    halo = fit_cost(10**6, 10**5, 10**8, 64, 32, mode="halo", met=(0.8, 0.6))
    assert halo.table == pytest.approx(0.6 * whole.table) and halo.sent < whole.sent


def test_a_prior_takes_memory_and_another_table(run):
    """The table as it is for the line search, and sums of E + 1 by D; the embeddings of all rows on each rank."""
    without, beside = (fit_cost(10**6, 10**5, 10**8, 64, 8, solver="cg", features=(0, e)) for e in (0, 256))
    assert without.priors == 0 and beside.priors > 10**5 * 256 * 4 * 9 / 8
    assert beside.memory == without.memory + beside.priors
    table, sums = 7 / 8 * 10**6 * 64 * 4, 257 * 64 * 8
    assert table + 4 * sums < beside.sent - without.sent < 1.3 * table
    _, out, _ = run("plan", *SIZES, "--item-features", "256")
    assert "priors, at most" in out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ranks": 0}, "ranks must be"),
        ({"features": (0, -1)}, "item_features must be"),
        ({"bandwidth": 0}, "bandwidth must be"),
        ({"mode": "blocks"}, "mode must be 'all' or 'halo'"),
        ({"solver": "lu"}, "solver must be"),
    ],
)
def test_bad_numbers_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        fit_cost(10, 10, 10, 4, **options)


def test_a_rate_can_be_measured():
    assert 1e6 < measured_rate(16, "cg", seconds=0.05) < 1e13
