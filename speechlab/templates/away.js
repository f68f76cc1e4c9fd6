// A page whose server goes away says so, and comes back by itself once it answers: an address says all that a page shows. Where
// something was entered that no address holds, the reader decides when.
(() => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const words = (text) => { const part = document.createElement('span'); part.textContent = text; return part; };
  let entered = false, away = false, leaving = false;
  addEventListener('beforeunload', () => { leaving = true; });
  if (document.body.dataset.keeps) for (const kind of ['input', 'change']) addEventListener(kind, () => { entered = true; }, true);
  function say(...parts) {
    const place = document.querySelector('.away') ?? document.body.appendChild(document.createElement('div'));
    place.className = 'away'; place.setAttribute('role', 'alert'); place.replaceChildren(...parts);
  }
  async function answers() {
    try { return (await fetch('static/js/bokeh.min.js', { method: 'HEAD', cache: 'no-store', signal: AbortSignal.timeout(5000) })).ok; }
    catch { return false; }
  }
  async function lost() {
    if (away || leaving) return;
    away = true;
    say(words(`The server has not answered since ${new Date().toLocaleTimeString()}; trainings go on without it. This page comes back once it does.`));
    // not all pages at once, nor too often
    for (let wait = 500; !await answers(); wait = Math.min(2 * wait, 4000)) await pause(wait * (0.5 + Math.random()));
    if (!entered) { location.reload(); return; }
    const button = document.createElement('button');
    button.type = 'button'; button.textContent = 'Load the page anew'; button.onclick = () => location.reload();
    say(words('The server is back. What you entered is still to be read here, and goes when the page is loaded anew. '), button);
  }
  (async () => {
    while (!window.Bokeh?.documents?.length) await pause(100);
    Bokeh.documents[0].on_event('connection_lost', lost);
  })();
})();
