"""Configurations: presets, settings, and what is impossible."""

import pytest

from capvisor.study.configuration import preset, preset_names, read_configuration, settings_of, walk_maxima
from capvisor.study.errors import StudyError


def test_every_preset_is_possible_at_every_page_size_and_depth_and_says_its_sources():
    assert preset_names() == ["skylake-sp", "zen2"]
    for name in preset_names():
        for size in ("4K", "2M", "1G"):
            for levels in ("4", "5"):
                found = preset(name, {"page_size": size, "host_page_size": "1G", "levels": levels})
                assert found.page_size == size and len(found.sources) >= 2


def test_structures_have_other_sizes_for_large_pages_and_settings_come_last():
    assert preset("skylake-sp").tlb.l1d.entries == 64
    assert preset("skylake-sp", {"page_size": "2M", "host_page_size": "2M"}).tlb.l1d.entries == 32
    settings = {"page_size": "2M", "host_page_size": "2M", "tlb.l1d.entries": "0x10"}
    assert preset("skylake-sp", settings).tlb.l1d.entries == 16
    assert settings_of(preset("skylake-sp", settings))["tlb.l1d.entries"] == 16


@pytest.mark.parametrize(
    ("levels", "guest", "host", "expected"),
    [
        (4, "4K", "4K", (4, 24, 5)),
        (5, "4K", "4K", (5, 35, 6)),
        (4, "2M", "2M", (3, 15, 4)),
        (4, "4K", "2M", (4, 19, 5)),
        (4, "1G", "1G", (2, 8, 3)),
    ],
)
def test_the_most_references_of_a_walk(levels, guest, host, expected):
    settings = {"levels": str(levels), "page_size": guest, "host_page_size": host}
    assert walk_maxima(preset("skylake-sp", settings)) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": "6"}, "4 or 5 levels"),
        ({"page_size": "8K"}, "pages are of 4K, 2M, 1G"),
        ({"page_size": "2M"}, "host_page_size 4K is less than page_size 2M"),
        ({"tlb.l2.entries": "1000"}, "1000 doesn't fill sets of 12 ways"),
        ({"tlb.l2.entries": "0"}, "expected 1 to"),
        ({"tlb.l2.ways": "0"}, "doesn't fill sets of 0 ways|expected 1 to"),
        ({"host.exit_cycles": "-1"}, "expected 0 to"),
        ({"tlb.l2.entries": "many"}, "no whole number"),
        ({"tlb.l2.entry": "5"}, "do you mean tlb.l2.entries"),
        ({"name": "x"}, "no setting `name`"),
    ],
)
def test_what_is_impossible_gets_a_message(settings, message):
    with pytest.raises(StudyError, match=message):
        preset("skylake-sp", settings)


def test_files_that_are_no_configuration(tmp_path):
    path = tmp_path / "c.toml"
    with pytest.raises(StudyError, match="No such file"):
        read_configuration(path)
    for text, message in [
        ("levels = ", "not TOML"),
        ("levels = 4", "`name` is missing"),
        ("name = 5", "`name` should be a text"),
    ]:
        path.write_text(text)
        with pytest.raises(StudyError, match=message):
            read_configuration(path)
    with pytest.raises(StudyError, match="there are skylake-sp, zen2"):
        preset("pentium")


def test_a_file_with_a_setting_that_nobody_knows(tmp_path):
    from importlib import resources

    text = (resources.files("capvisor.study") / "presets" / "zen2.toml").read_text()
    path = tmp_path / "c.toml"
    path.write_text(text)
    assert read_configuration(path) == preset("zen2")
    path.write_text(text + "\n[cache]\nsize = 3\n")
    with pytest.raises(StudyError, match=r"unknown: cache\.size"):
        read_configuration(path)
