"""`capvisor prove cvm`."""

import json


def test_a_step_is_proved_and_kept(capvisor, tmp_path) -> None:
    path = tmp_path / "result.json"
    command = ("prove", "cvm", "ecall.cc64", "--state", tmp_path, "--workers", 1)
    status, out, _err = capvisor(*command, "--json", path)
    assert status == 0 and "1 of 1 steps keep every invariant under intended" in out
    (step,) = json.loads(path.read_text())["steps"]
    assert step["step"] == "ecall" and step["is_proved"] and set(step["answers"].values()) == {"unsat"}
    assert capvisor(*command)[0] == 0


def test_bad_names_are_said(capvisor) -> None:
    status, _out, err = capvisor("prove", "cvm", "no_such_step", "--no-cache")
    assert status == 64 and "no step matches no_such_step" in err
    status, _out, err = capvisor("prove", "cvm", "ecall", "--policy", "none", "--no-cache")
    assert status == 64 and "unknown policy `none`" in err
