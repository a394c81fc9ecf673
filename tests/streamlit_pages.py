"""Open a page of extract.py that Streamlit serves: by Streamlit's test interface, and in a browser."""

import contextlib
import os
import sys
import time
import urllib.error
import urllib.request

import pytest

from running import EXTRACT, start_command

NEEDS = "needs Streamlit: pip install -e '.[viewer]'"


def _script(argv):  # Streamlit takes its text, without what this file imports
    from spectralseg.commands.cli import main

    main(argv)


def open_app(monkeypatch, *argv):
    """The page of a command, with Streamlit's test interface."""
    testing = pytest.importorskip("streamlit.testing.v1", reason=NEEDS)
    # Streamlit puts its script in this place and leaves it there, where the workers of other tests would start from it.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    return testing.AppTest.from_function(_script, kwargs={"argv": list(argv)}, default_timeout=60).run()


def own_port():
    """A port that no other process of a test run takes: below those that the system deals out, by process."""
    return 20_000 + os.getpid() % 10_000


@contextlib.contextmanager
def open_tab(browser, log, *argv, **viewport):
    """A browser's tab with the page, from ``streamlit run extract.py`` as users start it."""
    pytest.importorskip("streamlit", reason=NEEDS)
    address = f"http://127.0.0.1:{own_port()}"
    command = [sys.executable, "-m", "streamlit", "run", "--server.headless", "true", "--server.port", own_port()]
    command += ["--server.address", "127.0.0.1", "extract.py", argv[0], "--", *argv[1:]]
    with open(log, "wb") as output:
        server = start_command(command, cwd=EXTRACT.parent, stdout=output, stderr=output)
    try:
        for _ in range(240):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=5)
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
        tab, problems, asked = browser.new_page(viewport=viewport), [], []
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        yield tab
        tab.close()
        assert not problems
        assert "Traceback" not in log.read_text()
        assert not [one for one in asked if not one.startswith((address, "data:", "blob:"))]  # nor statistics of use
    finally:
        server.terminate()
        server.wait(20)


def settled(tab, text):
    """Wait until the page shows a text, has run to its end and has all its pictures."""
    tab.get_by_text(text, exact=True).first.wait_for(timeout=60_000)
    script = """document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'
        && !document.querySelector('[data-testid=stSkeleton]') && document.images.length > 0
        && [...document.images].every(image => image.complete)"""
    tab.wait_for_function(script, timeout=60_000)
