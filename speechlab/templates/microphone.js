function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const put = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  put(0, 'RIFF'); view.setUint32(4, 36 + 2 * samples.length, true); put(8, 'WAVEfmt ');
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  put(36, 'data'); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true));
  return new Blob([view.buffer]);
}
function base64(blob) {
  return new Promise((done) => { const reader = new FileReader();
    reader.onload = () => done(reader.result.split(',')[1]); reader.readAsDataURL(blob); });
}
export function render({ model, el }) {
  const button = document.createElement('button'), said = document.createElement('span');
  button.type = 'button'; said.setAttribute('role', 'status');
  let recorder = null, timer = null;
  const tell = (words) => { said.textContent = words; model.state = words; };
  const idle = () => { recorder = null; clearTimeout(timer); button.textContent = 'Record'; button.setAttribute('aria-pressed', 'false'); };
  idle();
  button.onclick = async () => {
    if (recorder) { recorder.stop(); return; }
    if (!navigator.mediaDevices || !window.MediaRecorder) { tell('A browser gives its microphone to 127.0.0.1 and to https only.'); return; }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false } });
      const parts = [];
      recorder = new MediaRecorder(stream);
      recorder.ondataavailable = (event) => parts.push(event.data);
      recorder.onstop = async () => {
        const kind = recorder.mimeType;
        stream.getTracks().forEach((track) => track.stop());
        idle();
        try {
          const bytes = await new Blob(parts, { type: kind }).arrayBuffer();
          const heard = await new OfflineAudioContext(1, 1, model.rate).decodeAudioData(bytes);
          model.wav = await base64(wav(heard.getChannelData(0), model.rate));
          el.dispatchEvent(new Event('input', { bubbles: true, composed: true }));  // something is entered that a reload would lose
          tell(heard.duration.toFixed(1) + ' s recorded');
        } catch (error) { tell('Nothing was recorded: ' + error.message); }
      };
      recorder.start();
      timer = setTimeout(() => recorder && recorder.stop(), 1000 * model.most);
      button.textContent = 'Stop'; button.setAttribute('aria-pressed', 'true'); tell('recording …');
    } catch (error) { idle(); tell('The microphone cannot be had: ' + error.message); }
  };
  el.append(button, said);
}
