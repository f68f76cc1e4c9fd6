"""The login: a table of attacks against the live server, each with its control; the roles; OAuth; and all of it in Chromium."""

from __future__ import annotations

import base64
import http.client
import re
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from bokeh.util.token import generate_jwt_token, generate_session_id
from browser import answers, ended, free_port, make_run, watch
from playwright.sync_api import expect
from tornado.web import create_signed_value
from visits import cookie, cut_off, sent, session, shaken, token, tried

from speechlab import app, login, users
from speechlab.door import Terms
from speechlab.login import DAYS, FREE, HEADER, SWEEP, Patience, within
from speechlab.users import Users

pytestmark = pytest.mark.slow
WORDS = {"ann": "correct horse battery", "bob": "staple and then some", "cy": "another one for cy"}


class Lab:
    """A served app with a login, and its folder."""

    def __init__(self, folder: Path) -> None:
        self.root, self.users, self.port = folder / "reports", Users(folder / "users"), free_port()
        self.root.mkdir()
        self.run = make_run(self.root, steps=9, name="live", end=False)
        for name, role in (("ann", "operator"), ("bob", "reader"), ("cy", "reader")):
            self.users.put(name, role, WORDS[name])
        self.url = f"http://127.0.0.1:{self.port}/"
        self.threads = [self.serve()]
        self.login = login._open[f"speechlab-{self.port}"]

    def serve(self, terms: Terms | None = None, port: int = 0):
        port = port or self.port
        thread = app.serve(self.root, port=port, threaded=True, terms=terms or Terms(users=self.users.path))
        answers(port)
        return thread

    def cookie(self, name: str) -> str:
        return cookie(self.url, name, WORDS[name])

    def opens(self, given: str, page: str = "/") -> bool:
        """Whether a page opens with a cookie."""
        status, headers, body = sent(self.url, page, Cookie=given)
        if status == 302:
            assert headers["location"].startswith("./login?next=") and "live" not in body
        return status == 200


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    cost, nobody = users.COST, users._NOBODY
    users.COST, users._NOBODY = (10, 8, 1), []  # what a check costs is test_users.py's
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    ended(*made.threads)
    login._open.clear()
    users.COST, users._NOBODY = cost, nobody


@pytest.fixture(autouse=True)
def patient(lab):
    lab.login.patience._wrong.clear()


# -- without a cookie, and with a bad one ------------------------------------------------------------------


def test_nothing_of_the_lab_is_told_without_a_login(lab):
    own = token(lab.url, "/", lab.cookie("bob"))
    for page in ("/", "/run?run=live", "/errors", "/compare", "/playground", "/system"):
        status, headers, body = sent(lab.url, page)
        assert (status, headers["location"], body) == (302, f"./login?next={quote(page, safe='')}", "")
        for given in (own, generate_jwt_token("x" * 44)):
            assert shaken(lab.url, page, given) == 403
    for path in ("/autoload.js?bokeh-autoload-element=x", "/metadata", "/run/metadata"):
        assert sent(lab.url, path)[0] in (302, 403, 404), path
    mine = lab.cookie("bob")
    assert shaken(lab.url, "/", token(lab.url, "/", mine), Cookie=mine) == 101, "control"


def signed(lab: Lab, secret: str | None = None, name: str | None = None, days: float = 0, **parts: str) -> str:
    """A cookie of one's own making."""
    value = f"{parts.get('user', 'ann')} {parts.get('number', 'n1')} {parts.get('stamp', lab.login._stamp(parts.get('user', 'ann')))}"
    clock = (lambda: time.time() - days * 86_400) if days else None
    made = create_signed_value(secret or lab.login.secret, name or lab.login.cookie, value, clock=clock).decode()
    return f"{lab.login.cookie}={made}"


def test_a_cookie_that_is_not_ours_lets_nobody_in(lab):
    good = signed(lab)
    assert lab.opens(good), "control: made with the secret itself"
    name, _, value = good.partition("=")
    plain = base64.b64encode(b"ann n1 " + lab.login._stamp("ann").encode()).decode()
    head, _, signature = value.rpartition("|")
    bad = {
        "another secret": signed(lab, secret="x" * 64),
        "no secret": signed(lab, secret="\0"),
        "of another kind": signed(lab, name="panel-oauth-state"),
        "of another port": signed(lab, name="speechlab-1"),
        "another signature": f"{name}={head}|{signature[::-1]}",
        "another user's signature": f"{name}={signed(lab, user='bob').partition('=')[2].rpartition('|')[0]}|{signature}",
        "not signed": f"{name}={plain}",
        "Panel's": "user=ann; is_guest=1",
        "empty": f"{name}=",
        "expired": signed(lab, days=DAYS + 0.1),
        "somebody unknown": signed(lab, user="eve", stamp=lab.login._stamp("eve")),
        "an old password": signed(lab, stamp="0" * 32),
        "two parts": f"{name}={create_signed_value(lab.login.secret, lab.login.cookie, 'ann n1').decode()}",
    }  # fmt: skip
    own = token(lab.url, "/", good)
    for what, given in bad.items():
        assert not lab.opens(given), what
        assert shaken(lab.url, "/", own, Cookie=given) == 403, what
    assert lab.opens(signed(lab, days=DAYS - 0.1)), "control"
    assert shaken(lab.url, "/", own, Cookie=good) == 101, "control"


def test_what_a_browser_is_given_is_for_this_server_alone(lab):
    _, headers, _ = tried(lab.url, "ann", WORDS["ann"])
    set_ = headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= {part.strip() for part in set_.split(";")}
    assert "Secure" not in set_ and "Domain" not in set_
    body = sent(lab.url, "/run?run=live", Cookie=set_.partition(";")[0])[2]
    value = set_.partition(";")[0].partition("=")[2].strip('"')
    payload = token(lab.url, "/", set_.partition(";")[0]).partition(".")[0]
    told = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).decode("utf-8", "replace")
    assert value not in body and value not in told, "where a script of the page could read it"
    assert "__bk__zlib" in told or "session_id" in told, "control: that is what was looked into"


# -- websockets and sessions ---------------------------------------------------------------------------------


def test_a_websocket_is_taken_from_the_own_origin_with_the_login_of_its_page(lab):
    ann, bob = lab.cookie("ann"), lab.cookie("bob")
    hers = token(lab.url, "/run?run=live", ann)
    assert shaken(lab.url, "/run", hers, Cookie=ann) == 101, "control"
    port = lab.port
    for origin in ("http://evil.example", f"http://127.0.0.1:{port + 1}", f"https://127.0.0.1:{port}", f"http://localhost:{port}", "null"):
        assert shaken(lab.url, "/run", hers, Cookie=ann, Origin=origin) == 403, origin
        assert sent(lab.url, "/run?run=live", Cookie=ann, Origin=origin)[0] == 403, origin
    assert shaken(lab.url, "/run", hers, Cookie=ann, Host=f"evil.example:{port}") == 403
    assert shaken(lab.url, "/run", hers, Cookie=bob) == 403, "the operator's session, held by a reader"
    assert shaken(lab.url, "/run", hers, Cookie=lab.cookie("ann")) == 403, "and by a login of hers that is another"
    assert shaken(lab.url, "/run", hers) == 403


def test_no_session_is_made_that_somebody_else_knows(lab):
    """Session fixation: Bokeh lets an address name the session that a page is to be; whoever wrote the address could join it."""
    ann, bob = lab.cookie("ann"), lab.cookie("bob")
    his = token(lab.url, "/", bob)
    for named in ("bokeh-session-id=" + "x" * 44, f"bokeh-token={quote(his)}"):
        assert sent(lab.url, f"/run?run=live&{named}", Cookie=ann)[0] == 403
        assert sent(lab.url, f"/run/autoload.js?bokeh-autoload-element=x&{named}", Cookie=ann)[0] == 403
    assert sent(lab.url, "/run?run=live", Cookie=ann, Bokeh_Session_Id="x" * 44)[0] == 403
    assert sent(lab.url, "/run?run=live", Cookie=ann)[0] == 200, "control"
    says = f"{lab.login.cookie} ann n1"
    own = signed(lab, user="bob", number="n1", stamp=lab.login._stamp("bob"))
    key, id = lab.login.session_key, generate_session_id(lab.login.session_key, signed=True)
    for says_, status in ((says, 403), (says.replace("ann", "bob"), 101)):  # tokens of one's own making, as any client can make them
        payload = {"headers": {HEADER: says_}, "cookies": {}, "arguments": {}}
        assert shaken(lab.url, "/run", generate_jwt_token("y" * 44, extra_payload=payload), Cookie=own) == 403
        assert shaken(lab.url, "/run", generate_jwt_token(id, key, signed=True, extra_payload=payload), Cookie=own) == status, "control"
    body = sent(lab.url, "/", Cookie=bob, **{HEADER.replace("-", "_"): says})[2]
    assert "bob, reader" in body and "ann, operator" not in body, "a header of one's own says nothing"


def test_a_reader_s_click_on_the_operator_s_button_does_nothing(lab):
    with lab.run.lock():
        time.sleep(0.5)
        with session(lab.url, "/run?run=live", lab.cookie("bob")) as held:
            assert held.labels()["Stop"] == (True, True) and held.labels()["Yes"] == (False, False)
            for label in ("Stop", "Yes", "Yes"):
                held.click(label)
            assert "Only operators may do this." in held.texts()
            assert not lab.run.stop_file.exists()
        with session(lab.url, "/run?run=live", lab.cookie("ann")) as held:
            for label in ("Stop", "Yes"):
                held.click(label)
            assert lab.run.stop_file.exists(), "control"
    lab.run.stop_file.unlink()


def test_a_reader_sees_no_way_to_tag_or_delete_and_an_operator_does(lab):
    with session(lab.url, "/", lab.cookie("bob")) as held:
        assert "live" not in held.labels()
    with session(lab.url, "/", lab.cookie("ann")) as held:
        assert held.labels()["live"] == (True, False), "the button that opens it"


def test_who_is_demoted_while_the_page_is_open_may_no_more(lab):
    lab.users.put("cy", "operator", WORDS["cy"])
    given = lab.cookie("cy")
    with lab.run.lock():
        time.sleep(0.5)
        with session(lab.url, "/run?run=live", given) as held:
            text = lab.users.path.read_text()
            lab.users.path.write_text(text.replace("cy:operator:", "cy:reader:"))
            held.click("Stop")
            held.click("Yes")
            assert not lab.run.stop_file.exists() and "Only operators" in held.texts()
            lab.users.path.write_text(text)
            held.click("Yes")
            assert lab.run.stop_file.exists(), "control"
    lab.run.stop_file.unlink()


def test_who_is_removed_or_has_another_password_is_out_at_once(lab):
    given = lab.cookie("cy")
    text = lab.users.path.read_text()
    assert lab.opens(given)
    assert cut_off(lab.url, "/", given, lambda: lab.users.remove("cy")), "the page that was open too"
    assert not lab.opens(given)
    lab.users.path.write_text(text)
    assert lab.opens(given), "control"
    assert not cut_off(lab.url, "/", given, lambda: None, 3 * SWEEP / 1000), "control"
    lab.users.put("cy", "reader", WORDS["cy"] + "!")
    assert not lab.opens(given)
    lab.users.put("cy", "reader", WORDS["cy"])
    assert not lab.opens(given), "another salt: whoever sets a password ends all logins with the old one"


def test_logging_out_ends_the_login_here_and_there(lab):
    given, other = lab.cookie("bob"), lab.cookie("bob")
    assert sent(lab.url, "/logout", Cookie=given)[0] == 200 and lab.opens(given), "an address alone does nothing"
    assert sent(lab.url, "/logout", "POST", {}, Cookie=given, Origin="http://evil.example")[0] == 403 and lab.opens(given)
    assert sent(lab.url, "/logout", "POST", {}, Cookie=given)[0] == 403 and lab.opens(given)

    def leave() -> None:
        status, headers, _ = sent(lab.url, "/logout", "POST", {}, Cookie=given, Origin=lab.url.rstrip("/"))
        assert status == 200 and re.search(r'speechlab-\d+=""; expires=', headers["set-cookie"])

    assert cut_off(lab.url, "/", given, leave)
    assert not lab.opens(given), "though somebody kept the cookie"
    assert lab.opens(other), "control: another login goes on"


def test_a_server_that_starts_anew_keeps_people_logged_in(lab, tmp_path):
    given = lab.cookie("ann")
    port = free_port()
    again = Lab.__new__(Lab)
    again.root, again.users, again.port, again.url = lab.root, lab.users, port, f"http://127.0.0.1:{port}/"
    thread = again.serve()
    try:
        assert not again.opens(given), "another port is another server"
        moved = f"speechlab-{port}=" + cookie(again.url, "ann", WORDS["ann"]).partition("=")[2]
        ended(thread)
        thread = again.serve()
        assert again.opens(moved)
    finally:
        ended(thread)


# -- the form ------------------------------------------------------------------------------------------------

ELSEWHERE = ["//evil.example", "///evil.example", "////evil.example", "/\\evil.example", "\\\\evil.example", "http://evil.example",
             "https:evil.example", "/\t/evil.example", "/\n/evil.example", " //evil.example", "javascript:alert(1)", "evil.example", "",
             "/x\r\nSet-Cookie: a=b"]  # fmt: skip


@pytest.mark.parametrize("next", ELSEWHERE)
def test_a_login_leads_nowhere_else(lab, next):
    assert within(next) == "/"
    status, headers, _ = tried(lab.url, "bob", WORDS["bob"], next)
    assert (status, headers["location"]) == (303, "/")
    body = sent(lab.url, f"/login?next={quote(next, safe='')}")[2]
    assert 'name="next" value="/"' in body


@pytest.mark.parametrize("next", ["/", "/run?run=live", "/compare?a=x%2F%2Fy&b=z", "/run?run=a:b@c", "/run?run=%C3%A9"])
def test_it_leads_to_the_page_that_was_asked_for(lab, next):
    assert within(next) == next
    assert tried(lab.url, "bob", WORDS["bob"], next)[1]["location"] == next


def test_no_other_site_logs_a_browser_in(lab):
    """Login CSRF: who is made to work as somebody else shows them what they do."""
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{lab.port}.evil.example", f"https://127.0.0.1:{lab.port}"):
        status, headers, _ = tried(lab.url, "bob", WORDS["bob"], Origin=origin)
        assert (status, "set-cookie" in headers) == (403, False), origin
    fields = {"user": "bob", "password": WORDS["bob"], "next": "/"}
    assert sent(lab.url, "/login", "POST", fields)[0] == 403, "without an origin, as no browser sends a form"
    assert sent(lab.url, "/login", "POST", fields, Origin=lab.url.rstrip("/"), Host=f"evil.example:{lab.port}")[0] == 403
    query = f"/login?user=bob&password={quote(WORDS['bob'])}"
    assert sent(lab.url, query, "POST", {}, Origin=lab.url.rstrip("/"))[0] == 403, "a password in an address, which is written down"
    assert "set-cookie" not in sent(lab.url, query)[1]
    assert tried(lab.url, "bob", WORDS["bob"])[0] == 303, "control"


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """What the login takes for the time, which stands still unless it is moved."""
    now = [1000.0]
    monkeypatch.setattr(login, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    return now


def test_an_answer_does_not_tell_who_is_known(lab, clock):
    def shape(answer):
        status, headers, body = answer
        return status, {k: v for k, v in headers.items() if k not in ("date", "content-length")}, body

    answers = [shape(tried(lab.url, name, "a wrong password")) for name in ("ann", "nobody")]
    assert answers[0][:2] == answers[1][:2]
    assert answers[0][2].replace('"ann"', '""') == answers[1][2].replace('"nobody"', '""')
    lab.login.patience._wrong.clear()
    for name in ("ann", "nobody"):
        statuses = [tried(lab.url, name, "a wrong password")[0] for _ in range(FREE + 1)]
        assert statuses == [403] * FREE + [429], "who guesses at a name that nobody has waits as well"
        lab.login.patience._wrong.clear()


def test_guessing_is_slowed(lab, clock):
    for _ in range(FREE):
        assert tried(lab.url, "ann", "a wrong password")[0] == 403
    status, headers, body = tried(lab.url, "ann", WORDS["ann"])
    assert status == 429 and 1 <= int(headers["retry-after"]) <= 2 and "Try again in" in body, "the right one is not heard either"
    assert tried(lab.url, "bob", WORDS["bob"])[0] == 429, "of an address that guesses"
    clock[0] += 1.2
    assert tried(lab.url, "ann", WORDS["ann"])[0] == 303, "control"


def test_many_at_once_are_slowed_too(lab, clock):
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(tried(lab.url, "ann", "a wrong password")[0])) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(403) <= FREE and statuses.count(429) >= 12 - FREE


def test_a_right_password_of_one_s_own_buys_no_guesses(clock):
    patience, waited = Patience(), 0.0
    for guess in range(12):
        while wait := patience.wait("name ann", "from eve"):
            waited, clock[0] = waited + wait, clock[0] + wait
        if guess % 2 and not patience.wait("name eve", "from eve"):
            patience.right("name eve", "from eve")
    assert waited > 100
    other = Patience()
    assert [other.wait("name bob", "from bob") or other.right("name bob", "from bob") for _ in range(50)] == [None] * 50, "control"


def test_what_is_sent_to_the_form_is_no_markup_and_no_flood(lab):
    evil = '"><script>window.pwned=1</script>'
    for answer in (tried(lab.url, evil, "x"), sent(lab.url, f"/login?next={quote('/' + evil)}")):
        assert "<script>" not in answer[2]
    assert "&lt;script&gt;" in tried(lab.url, evil, "x")[2], "control: it is there"
    with suppress(ConnectionError):  # the server hangs up
        assert tried(lab.url, "ann", "x" * 200_000)[0] in (400, 413)
    assert tried(lab.url, "ann", "x" * 20_000)[0] in (403, 429), "control"
    for fields in ({}, {"user": "ann"}, {"user": "ann\0", "password": "\udcff".encode("utf-8", "replace").decode()}):
        assert sent(lab.url, "/login", "POST", fields, Origin=lab.url.rstrip("/"))[0] in (403, 429)


# -- over TLS ------------------------------------------------------------------------------------------------


def test_over_tls_the_cookie_is_for_tls_alone(lab, tmp_path):
    cert, key, port = tmp_path / "cert.pem", tmp_path / "key.pem", free_port()
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
               "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    thread = lab.serve(Terms(users=lab.users.path, cert=cert, key=key), port)
    try:
        client = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=ssl.create_default_context(cafile=str(cert)))
        fields = urlencode({"user": "ann", "password": WORDS["ann"], "next": "/"})
        form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"https://127.0.0.1:{port}"}
        client.request("POST", "/login", fields, form)
        answer = client.getresponse()
        set_ = answer.getheader("Set-Cookie")
        assert answer.read() == b"" and answer.status == 303
        assert set_.startswith(f"__Host-speechlab-{port}=") and {"Secure", "HttpOnly", "Path=/"} <= {
            part.strip() for part in set_.split(";")
        }
        client.request("GET", "/", headers={"Cookie": set_.partition(";")[0]})
        assert b"ann, operator" in client.getresponse().read()
        client.close()
        with pytest.raises((OSError, http.client.HTTPException)):
            sent(f"http://127.0.0.1:{port}/", "/login")
    finally:
        ended(thread)


def test_behind_a_proxy_each_address_waits_for_itself_and_names_are_exact(lab):
    port = free_port()
    thread = lab.serve(Terms(users=lab.users.path, proxy=True, origins=("https://lab.example.org",)), port)
    try:
        url, here = f"http://127.0.0.1:{port}/", {"Host": "lab.example.org", "Origin": "https://lab.example.org"}
        assert sent(url, "/login")[0] == 403, "by another name"
        assert tried(url, "ann", WORDS["ann"], Host="lab.example.org", Origin="http://lab.example.org")[0] == 403, "without TLS"
        for _ in range(FREE):
            assert tried(url, "nobody", "a wrong password", **here, X_Forwarded_For="192.0.2.1")[0] == 403
        assert tried(url, "ann", WORDS["ann"], **here, X_Forwarded_For="198.51.100.7, 192.0.2.1")[0] == 429, "what a client says of itself"
        status, headers, _ = tried(url, "ann", WORDS["ann"], **here, X_Forwarded_For="192.0.2.2")
        assert status == 303 and "Secure" in headers["set-cookie"]
        mine = headers["set-cookie"].partition(";")[0]
        body = sent(url, "/", Cookie=mine, Host="lab.example.org")[2]
        given = re.search(r'"token":"([^"]+)"', body)[1]
        assert shaken(url, "/", given, Cookie=mine, **here) == 101, "control"
        assert shaken(url, "/", given, Cookie=mine, Host="lab.example.org", Origin="http://lab.example.org") == 403
    finally:
        ended(thread)


# -- by OAuth ------------------------------------------------------------------------------------------------


@pytest.fixture
def service():
    """An OAuth service on this machine: whoever it names is who ``who`` says; it keeps what it was asked."""
    import asyncio

    from tornado.httpserver import HTTPServer
    from tornado.web import Application, RequestHandler

    about = {"who": "ann", "asked": []}

    class Token(RequestHandler):
        def post(self):
            about["asked"].append({k: v[0].decode() for k, v in self.request.body_arguments.items()})
            self.write({"access_token": "the-access-token", "token_type": "bearer"})

    class Who(RequestHandler):
        def get(self):
            assert self.request.headers["Authorization"] == "Bearer the-access-token"
            self.write({"login": about["who"]})

    ready, port, held = threading.Event(), free_port(), {}

    def work():
        async def main():
            held["loop"], held["over"] = asyncio.get_running_loop(), asyncio.Event()
            server = HTTPServer(Application([("/token", Token), ("/who", Who)]))
            server.listen(port, "127.0.0.1")
            ready.set()
            await held["over"].wait()
            server.stop()

        asyncio.run(main())

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(10)
    yield about, f"http://127.0.0.1:{port}"
    held["loop"].call_soon_threadsafe(held["over"].set)
    thread.join(10)


def test_who_the_service_names_comes_in_as_the_file_says(lab, service, monkeypatch):
    about, place = service
    for key, value in {"KEY": "the-key", "SECRET": "the-secret", "AUTHORIZE_URL": f"{place}/authorize", "TOKEN_URL": f"{place}/token",
                       "USER_URL": f"{place}/who"}.items():  # fmt: skip
        monkeypatch.setenv(f"PANEL_OAUTH_{key}", value)
    monkeypatch.setenv("PANEL_USER_KEY", "login")
    port = free_port()
    thread, url = lab.serve(Terms(users=lab.users.path, oauth="generic"), port), f"http://127.0.0.1:{port}/"
    try:

        def begun(next: str = "/") -> tuple[str, str]:
            status, headers, _ = sent(url, f"/login?next={quote(next, safe='')}")
            assert status == 302 and "the-secret" not in headers["location"]
            to = urlsplit(headers["location"])
            assert f"{to.scheme}://{to.netloc}{to.path}" == f"{place}/authorize"
            query = {k: v[0] for k, v in parse_qs(to.query).items()}
            assert query["redirect_uri"] == f"{url}login" and query["client_id"] == "the-key"
            assert {"HttpOnly", "SameSite=Lax"} <= {part.strip() for part in headers["set-cookie"].split(";")}
            return query["state"], re.search(r"panel-oauth-state=[^;]+", headers["set-cookie"])[0]

        def back(state: str, given: str, code: str = "c1"):
            return sent(url, f"/login?code={code}&state={quote(state)}", Cookie=given)

        state, given = begun("/run?run=live")
        status, headers, _ = back(state, given)
        assert (status, headers["location"]) == (302, "/run?run=live")
        assert about["asked"][-1]["code"] == "c1" and about["asked"][-1]["client_secret"] == "the-secret"
        assert "the-access-token" not in str(headers) and base64.b64encode(b"the-access-token").decode().rstrip("=") not in str(headers)
        mine = re.search(rf"speechlab-{port}=[^;]+", headers["set-cookie"])[0]
        assert "ann, operator" in sent(url, "/", Cookie=mine)[2]

        asked = len(about["asked"])
        for made in ({"state": "", "given": ""}, {"state": "", "given": given}, {"state": state, "given": ""},
                     {"state": begun()[0], "given": given}):  # fmt: skip
            status, headers, _ = back(**made)
            assert status == 401 and f"speechlab-{port}=" not in headers.get("set-cookie", ""), made
        assert len(about["asked"]) == asked, "nobody logs a browser in by a code of their own"
        assert sent(url, "/login?code=c1", Cookie=given)[0] == 401
        assert sent(url, "/login?error=x&error_description=<script>", Cookie=given)[0] == 401

        about["who"] = "eve"
        status, headers, body = back(*begun())
        assert status == 403 and f"speechlab-{port}=" not in headers.get("set-cookie", "") and "Not among the users here" in body
        for next in ELSEWHERE:
            about["who"] = "bob"
            assert back(*begun(next))[1]["location"] == "/", next
        assert tried(url, "ann", WORDS["ann"])[0] in (403, 405), "passwords are not asked for"
    finally:
        ended(thread)


# -- in Chromium ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_one_logs_in_sees_one_s_role_and_logs_out(chrome, lab, width, scheme, tmp_path):
    page = chrome.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    log = watch(page)
    with lab.run.lock():
        page.goto(lab.url + "run?run=live")
        page.wait_for_url("**/login?next=*")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.body).color.match(/[0-9]+/g).slice(0, 3).map(Number)")
        assert (sum(dark) > 382) == (scheme == "dark")
        page.get_by_label("Name").fill("bob")
        page.get_by_label("Password").fill("not the right one")
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("do not go together").wait_for()
        expect(page.get_by_label("Name")).to_have_value("bob")
        expect(page.get_by_label("Password")).to_have_value("")
        page.get_by_label("Password").fill(WORDS["bob"])
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url("**/run?run=live")
        page.get_by_text("bob, reader").wait_for(timeout=60_000)
        stop = page.get_by_role("button", name="Stop")
        stop.wait_for(timeout=60_000)
        expect(stop).to_be_disabled()
        page.get_by_text("Only operators may do this.").wait_for()
        assert page.evaluate("document.cookie") == "", "no script reads the cookie"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=tmp_path / "reader.png")
        other = page.context.new_page()
        other.goto(lab.url + "?filter=live")
        other.get_by_text("1 run:").first.wait_for(timeout=60_000)
        page.get_by_role("button", name="Log out").click()
        page.get_by_role("heading", name="Logged out").wait_for()
        # what else was open asks for a login too, and would lead back to where it was
        other.wait_for_url("**/login?next=%2F%3Ffilter%3Dlive", timeout=60_000)
        other.close()
        page.go_back()
        page.wait_for_url("**/login?next=*")
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password").fill(WORDS["ann"])
        page.keyboard.press("Enter")
        page.get_by_text("ann, operator").wait_for(timeout=60_000)
        stop.wait_for(timeout=60_000)
        expect(stop).to_be_enabled()
    assert log.external == []
    assert [e for e in log.errors if "403" not in e] == []
    page.context.close()
