"""Names are many, different and long."""

from router.ids import SecretIds


def test_names_do_not_repeat() -> None:
    ids, others = SecretIds(), SecretIds()
    names = [maker.new() for _ in range(1000) for maker in (ids, others)]
    assert len(set(names)) == 2000
    assert {len(name) for name in names} == {32}
    assert all(int(name, 16) >= 0 for name in names)
