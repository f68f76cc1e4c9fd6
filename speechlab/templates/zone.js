// Times of a page in its reader's zone and manner; an element of its own finds them behind every shadow root, whenever they are written.
customElements.define('local-time', class extends HTMLElement {
  connectedCallback() {
    const time = this.querySelector('time');
    if (!time) return;
    time.title = time.textContent;
    time.textContent = new Date(time.dateTime).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' });
  }
});
