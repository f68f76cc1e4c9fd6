export function render({ model, el }) {
  const audio = document.createElement('audio'), sound = document.createElement('div'), cursor = document.createElement('i');
  const axis = document.createElement('div'), texts = document.createElement('div');
  audio.controls = true; sound.className = 'sound'; axis.className = 'axis';
  let words = [];
  const follow = () => {
    const at = audio.currentTime;
    cursor.style.left = (100 * Math.min(1, at / Math.max(model.seconds, 1e-9))) + '%';
    for (const [button, begin, end] of words) button.classList.toggle('now', at >= begin && at < end);
    if (!audio.paused) requestAnimationFrame(follow);
  };
  for (const name of ['play', 'seeked', 'pause']) audio.addEventListener(name, follow);
  sound.onclick = (event) => { const box = sound.getBoundingClientRect();
    audio.currentTime = model.seconds * (event.clientX - box.left) / box.width; };
  const draw = () => {
    audio.src = model.mp3 ? 'data:audio/mpeg;base64,' + model.mp3 : '';
    sound.replaceChildren(); texts.replaceChildren(); axis.replaceChildren(); words = [];
    for (const [kind, data, about] of [['svg+xml', model.wave, 'waveform'], ['png', model.mel, 'log-mel spectrogram, low bands below']]) {
      if (!data) continue;
      const picture = document.createElement('img');
      picture.src = 'data:image/' + kind + ';base64,' + data; picture.alt = about; sound.append(picture);
    }
    sound.append(cursor);
    for (const text of ['0 s', model.seconds.toFixed(1) + ' s']) { const end = document.createElement('span'); end.textContent = text; axis.append(end); }
    for (const [title, spoken] of model.rows) {
      const heading = document.createElement('h3'), line = document.createElement('p');
      heading.textContent = title;
      for (const [text, begin, end, sure] of spoken) {
        const button = document.createElement('button');
        button.type = 'button'; button.className = 'word'; button.textContent = text;
        button.title = begin.toFixed(2) + ' to ' + end.toFixed(2) + ' s' + (sure === null ? '' : ', confidence ' + Math.round(100 * sure) + ' %');
        if (sure !== null) button.style.borderBottomColor = 'rgba(213, 94, 0, ' + (1 - sure) + ')';
        button.onclick = () => { audio.currentTime = begin; audio.play(); };
        words.push([button, begin, end]); line.append(button, ' ');
      }
      texts.append(heading, line);
    }
  };
  draw();
  for (const name of ['mp3', 'rows']) model.on(name, draw);
  el.append(sound, axis, audio, texts);
}
