from styleclip_jax.runs.table import Column, print_headings, print_row

COLUMNS = {"whole": Column("whole", ".1%"), "gain": Column("gain", "+.3f")}


def test_numbers_are_printed_below_their_headings(capsys):
    print_headings("optimization", COLUMNS)
    print_row("eyes=wink", {"gain": 0.1234, "whole": 0.5, "other": 1}, COLUMNS)
    title, headings, row = capsys.readouterr().out.strip().splitlines()
    assert title == "optimization"
    assert row.split() == ["eyes=wink", "50.0%", "+0.123"]
    for heading, figure in (("whole", "50.0%"), ("gain", "+0.123")):
        assert headings.index(heading) + len(heading) == row.index(figure) + len(figure)


def test_a_missing_number_is_a_dash_and_a_long_name_has_its_own_line(capsys):
    print_row("x" * 40, {"whole": 1.0}, COLUMNS)
    name, row = capsys.readouterr().out.splitlines()
    assert name == "x" * 40
    assert row.split() == ["100.0%", "-"]
