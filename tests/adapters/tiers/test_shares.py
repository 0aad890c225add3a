"""One flow's thrashing pushes out its own adapters, not those that others use within their share."""

from manylora.adapter_state import AdapterState
from manylora.adapters.tiers.shares import Shares
from manylora.ids import Digest, Flow
from tests.adapters.adapter_files import local, save_adapter
from tests.adapters.store_folder import CONFIG, House

VICTIM, THRASHER = Flow("victim"), Flow("thrasher")


def use(house: House, name: str, flow: Flow) -> None:
    """One request: wanted until it is on the device, pinned, given back."""
    ref = local(name)
    for _ in range(40):
        house.store.want(ref, flow)
        house.store.poll()
        placed = house.store.pin(ref)
        if placed is not None:
            house.store.unpin(placed)
            house.store.unwant(ref)
            return
        house.clock.advance(0.05)
    raise AssertionError(f"{name} was never placed")


def test_shares_count_what_each_flow_used_last() -> None:
    shares = Shares(100)
    for number in range(6):
        shares.note(Digest(f"t{number}"), THRASHER, 10)
    shares.note(Digest("v"), VICTIM, 10)
    assert set(shares.protected_from(THRASHER)) == {"v"}
    assert set(shares.protected_from(VICTIM)) == set()  # the thrasher has more than its half
    assert shares.is_within(VICTIM, 40)
    assert not shares.is_within(THRASHER, 1)
    shares.note(Digest("t0"), VICTIM, 10)  # used by another: it changes hands
    assert set(shares.protected_from(THRASHER)) == {"v", "t0"}
    for digest in ("v", "t0"):
        shares.forget(Digest(digest))
    assert set(shares.protected_from(Flow("new"))) == {f"t{number}" for number in range(1, 6)}
    shares.forget(Digest("never here"))


def test_a_thrasher_evicts_its_own_adapters(house: House) -> None:
    for number, name in enumerate(("v", *(f"t{number}" for number in range(6)))):
        save_adapter(house.root / name, seed=number)
    use(house, "v", VICTIM)
    for turn in range(30):  # three have room: one of the victim's, and two of six
        use(house, f"t{turn % 6}", THRASHER)
        assert house.store.state(local("v")) is AdapterState.ON_DEVICE
    assert house.store.stats().evictions == 28


def test_one_flow_alone_has_the_whole_device(house: House) -> None:
    for number in range(3):
        save_adapter(house.root / f"a{number}", seed=number)
        use(house, f"a{number}", VICTIM)
    assert house.store.stats().on_device == 3
    assert house.store.stats().evictions == 0


def test_a_flow_beyond_its_share_still_gets_a_place_when_nothing_else_can_go(house: House) -> None:
    for number, name in enumerate(("v", "t0", "t1", "t2")):
        save_adapter(house.root / name, seed=number)
    use(house, "v", VICTIM)
    held = []
    for name in ("t0", "t1"):
        use(house, name, THRASHER)
        held.append(house.store.pin(local(name)))
    use(house, "t2", THRASHER)  # its own are in use: after some patience the idle one of the other goes
    assert house.store.state(local("v")) is house.below
    for placed in held:
        assert placed is not None
        house.store.unpin(placed)


def test_one_flow_never_has_all_turns_to_load(house: House) -> None:
    most = CONFIG.parallel_loads
    for number in range(most + 1):
        save_adapter(house.root / f"t{number}", seed=number)
    save_adapter(house.root / "v", seed=99)
    for number in range(most + 1):
        house.store.want(local(f"t{number}"), THRASHER)
    house.store.want(local("v"), VICTIM)
    house.store.poll()
    begun = [ref.id for ref, _ in house.store.begun()]
    assert "v" in begun
    assert len(begun) == max(1, most - most // 4) + 1
