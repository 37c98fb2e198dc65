/* The notebook widget: the viewer, a list of cases, and verdicts and corrected masks that Python writes to files at once. */
const VERDICTS = { accept: "✓", reject: "✗", unsure: "?" };
const VERDICT_KEYS = { Digit7: "accept", Digit8: "reject", Digit9: "unsure" }; // no command of JupyterLab or other viewers
const MEANING = {
  candidate: "It is abnormal",
  case: "The map shows what is abnormal in this case, and nothing else",
};
const PATIENCE = 5000; // ms
const PAUSE = 400; // ms after a stroke of the brush before the mask is saved

/** What a message is about: a candidate by threshold and voxel, a case, which has null for both, or its mask. */
const thing = ({ case: index, threshold, voxel }) => JSON.stringify({ case: index, threshold, voxel });

function render({ model, el }) {
  let current = null; // message of the case that is shown
  let opening = false; // whether a case is on its way
  let timer = null; // of the next question to Python
  const unsaved = new Map(); // verdicts that Python has not confirmed, by number
  const done = []; // what can be taken back, the last at the end: what it was, and how
  let corrected = null; // mask that is about to be sent
  const masks = new Map(); // voxels that a brush corrects, by case: one array each, which undoing goes by
  const view = Math.random(); // of the widget, which may have several that all get all answers
  const follow = new Map(); // what shows the verdict on a place, so that all views of the widget do

  const caseBox = element("select", { "aria-label": "Case", onchange: () => open(caseBox.selectedIndex) });
  const progress = element("progress");
  const progressText = element("span", { className: "hv-progress" });
  const saved = element("span", { className: "hv-saved", role: "status" });
  const button = (text, click, properties = {}) =>
    element("button", { type: "button", onclick: click, ...properties }, text);
  const header = element(
    "div",
    { className: "hv hv-head" },
    button("‹", () => open(caseBox.selectedIndex - 1), { "aria-label": "Previous case" }),
    caseBox,
    button("›", () => open(caseBox.selectedIndex + 1), { "aria-label": "Next case" }),
    button("Next not reviewed", () => open(nextOpen())),
    progress,
    progressText,
    saved,
  );
  if (model.get("title")) header.prepend(element("b", { className: "hv-title" }, model.get("title")));
  const undoButton = button("↶ Undo", () => undo(), { disabled: true });
  const problem = element("p", { className: "hv hv-problem", role: "alert", hidden: true });
  const stage = element("div");
  const caseVerdict = element("div", { className: "hv hv-verdict" });
  el.append(header, problem, stage, caseVerdict);
  el.addEventListener("keydown", (event) => {
    const isUndo = (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key === "z";
    if (isUndo && event.target.type !== "text" && event.target.type !== "number") {
      event.preventDefault();
      event.stopPropagation();
      undo();
    }
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation(); // JupyterLab's keys cut cells
  });

  /** Keeps how to take something back. */
  function remember(what, takeBack) {
    done.push({ what, takeBack });
    nameUndo();
  }

  function undo() {
    done.pop()?.takeBack();
    nameUndo();
  }

  function nameUndo() {
    undoButton.disabled = !done.length;
    undoButton.title = done.length ? `Take back ${done.at(-1).what} (Ctrl + z)` : "There is nothing to take back";
  }

  const viewer = createViewer(stage, model.get("colormaps"), {
    columns: ["Verdict and comment"],
    keys: [
      ["7, 8, 9", "accept, reject, unsure: the marked candidate"],
      ["Shift + 7, 8, 9", "the same for the case"],
      ["Ctrl + z", "undo the last verdict or stroke"],
    ],
    tools: [undoButton],
    remember: (what, takeBack) => remember(`${what} of ${model.get("cases")[current.case].case_id}`, takeBack),
    moved: (position) => announce(current.case, position),
    mask: (threshold, replace) => ask({ type: "mask", case: current.case, threshold, replace }),
    layer: (index) => ask({ type: "layer", case: current.case, layer: index }),
    threshold: (threshold) => {
      const message = { type: "threshold", case: current.case, threshold };
      clearTimeout(timer);
      timer = setTimeout(() => ask(message), 200);
    },
    decorate: (row, candidate, index, threshold) => {
      const place = { case: current.case, threshold, voxel: candidate.scan_voxel };
      row.append(element("td", {}, verdictControls(`candidate ${index + 1}`, MEANING.candidate, candidate, place)));
    },
    key: (event, candidateRow) => {
      const verdict = VERDICT_KEYS[event.code];
      const place = event.shiftKey ? caseVerdict : candidateRow;
      if (!verdict || !place) return false;
      const chosen = place.querySelector(`button[data-verdict="${verdict}"]`);
      if (chosen.getAttribute("aria-pressed") !== "true") chosen.click(); // a held key would take it back
      return true;
    },
  });

  /** Tells linked reviews where the crosshair is. */
  function announce(index, position) {
    if (!model.get("linked")) return;
    model.set("crosshair", { case: index, position });
    model.save_changes();
  }

  /** Goes where a linked review went. */
  function followCrosshair() {
    const { case: index, position } = model.get("crosshair");
    if (!model.get("linked") || index === undefined) return;
    if (index !== (opening ? caseBox.selectedIndex : current?.case)) open(index);
    else if (!opening) viewer.setPosition(position);
  }

  /** Makes the buttons and the comment for a place: a candidate by threshold and voxel, or a case, which has neither. */
  function verdictControls(what, meaning, entry, place) {
    const state = { verdict: entry.verdict, comment: entry.comment };
    const caseId = model.get("cases")[place.case].case_id;
    let typing = null;
    const save = (field) => {
      const fields = typing ? [field, "comment"] : [field];
      clearTimeout(typing);
      typing = null;
      Object.assign(entry, state);
      send({ type: "judge", ...place, ...Object.fromEntries(fields.map((name) => [name, state[name]])) });
    };
    const buttons = Object.entries(VERDICTS).map(([verdict, sign]) => {
      const click = () => {
        const before = state.verdict;
        state.verdict = before === verdict ? "" : verdict;
        press();
        save("verdict");
        remember(`the verdict on ${what} of ${caseId}`, () => send({ type: "judge", ...place, verdict: before }));
      };
      const key = `${place.voxel ? "" : "Shift + "}${Object.keys(VERDICT_KEYS).find((code) => VERDICT_KEYS[code] === verdict).at(-1)}`;
      const title = verdict === "accept" ? `${meaning} (key ${key})` : `Key ${key}`;
      return button(`${sign} ${verdict}`, click, {
        title,
        "data-verdict": verdict,
        "aria-label": `${verdict} ${what}`,
      });
    });
    const press = () =>
      buttons.forEach((item) => item.setAttribute("aria-pressed", item.dataset.verdict === state.verdict));
    const comment = element("input", {
      type: "text",
      placeholder: "comment",
      value: state.comment,
      "aria-label": `Comment on ${what}`,
      oninput: () => {
        state.comment = comment.value;
        clearTimeout(typing);
        typing = setTimeout(() => save("comment"), 500);
      },
      onchange: () => typing && save("comment"),
    });
    press();
    follow.set(thing(place), (verdict, text) => {
      state.verdict = verdict;
      press();
      if (!typing) comment.value = state.comment = text;
      Object.assign(entry, state);
    });
    const earlier = entry.earlier ? [element("span", { className: "hv-note" }, entry.earlier)] : [];
    return element("span", { className: "hv-judge" }, ...buttons, comment, ...earlier);
  }

  /** Sends a message to Python. */
  function ask(message, buffers = []) {
    try {
      model.send({ ...message, view }, undefined, buffers);
    } catch {
      wait(false);
      complain("The kernel has died: restart it, and run this cell again. What was saved is in the file.");
    }
  }

  /** Sends a verdict or a mask, and keeps it until Python has written it, or a newer one on the same thing is sent. */
  function send(message, buffers = []) {
    const number = Math.random();
    for (const [older, item] of unsaved) {
      if (thing(item.message) !== thing(message)) continue;
      clearTimeout(item.timer);
      unsaved.delete(older);
      message = { ...item.message, ...message }; // a comment stays where a verdict follows
    }
    const late =
      "No answer yet. The kernel is busy, or it died: then restart it, run this cell again, and decide again.";
    unsaved.set(number, { message, buffers, timer: setTimeout(() => say(`Not saved. ${late}`, true), PATIENCE) });
    say("Saving …");
    ask({ ...message, number }, buffers);
  }

  /** Makes how to save the corrected mask of a case: a moment after the last stroke. */
  function saver(index) {
    return (voxels) => {
      if (corrected?.case !== index) sendMask();
      clearTimeout(corrected?.timer);
      corrected = { case: index, voxels, timer: setTimeout(sendMask, PAUSE) };
    };
  }

  /** Takes a case's mask as it is in the file, unless a newer one is on its way there. */
  function takeMask(index, voxels) {
    const own = masks.get(index);
    const sent = [...unsaved.values()].some(({ message }) => thing(message) === thing({ case: index }));
    if (own && (sent || corrected?.case === index)) return;
    if (own?.length === voxels?.length) own?.set(voxels);
    else if (voxels) masks.set(index, voxels);
    else masks.delete(index);
  }

  /** What the brush is given for a case: nothing while it has no mask. */
  const brushed = (index) => masks.has(index) && { voxels: masks.get(index), save: saver(index) };

  function sendMask() {
    if (!corrected) return;
    clearTimeout(corrected.timer);
    const message = { type: "correct", case: corrected.case };
    const buffer = corrected.voxels.slice().buffer;
    corrected = null;
    send(message, [buffer]);
  }

  function say(text, isProblem = false) {
    saved.textContent = text;
    saved.classList.toggle("hv-alarm", isProblem);
  }

  function complain(text) {
    problem.textContent = text;
    problem.hidden = !text;
  }

  /** Asks for a case; of several in quick succession for the last one. */
  function open(index) {
    if (index < 0 || index >= caseBox.options.length) return;
    caseBox.selectedIndex = index;
    sendMask();
    complain("");
    say("Loading …");
    wait(true);
    const request = () => {
      timer = setTimeout(request, 2 * PATIENCE); // JupyterLab may lose a message while a kernel starts
      ask({ type: "open", case: index });
    };
    clearTimeout(timer);
    timer = setTimeout(request, current ? 150 : 0);
  }

  /** While a case is on its way, the one before is not to be judged. */
  function wait(isOpening) {
    opening = isOpening;
    if (!opening) clearTimeout(timer);
    el.setAttribute("aria-busy", opening);
    stage.inert = caseVerdict.inert = opening;
  }

  function nextOpen() {
    const names = model.get("cases");
    const order = names.map((_, place) => (caseBox.selectedIndex + 1 + place) % names.length);
    return order.find((place) => !names[place].verdict) ?? caseBox.selectedIndex;
  }

  function listCases() {
    const cases = model.get("cases");
    const selected = caseBox.selectedIndex;
    caseBox.replaceChildren(...cases.map((item) => new Option(`${VERDICTS[item.verdict] ?? "·"} ${item.case_id}`)));
    caseBox.selectedIndex = selected;
    const done = cases.filter((item) => item.verdict).length;
    Object.assign(progress, { max: cases.length, value: done });
    progressText.textContent = `${done} of ${cases.length} reviewed`;
  }

  const volume = (data, type) => new type(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength));

  /** Tells whether an answer is this view's, and on the case that is shown. */
  const isAwaited = (message) => message.view === view && message.case === current?.case;

  const answers = {
    case: (message, buffers) => {
      if (!opening || message.case !== caseBox.selectedIndex) return; // another one, or another view's
      current = message;
      caseBox.selectedIndex = message.case;
      const failed = "problem" in message;
      stage.hidden = failed;
      wait(false);
      complain(failed ? message.problem : "");
      say("");
      follow.clear();
      const place = { case: message.case, threshold: null, voxel: null };
      const title = element("b", {}, `Case ${model.get("cases")[message.case].case_id}`);
      caseVerdict.replaceChildren(title, verdictControls("the case", MEANING.case, message, place));
      if (failed) return;
      const types = { map: Uint16Array, image: Uint16Array, label: Uint8Array, mask: Uint8Array };
      const volumes = Object.fromEntries(
        message.volumes.map((name, place) => [name, volume(buffers[place], types[name])]),
      );
      takeMask(message.case, volumes.mask);
      viewer.show(message.header, volumes, brushed(message.case));
      if (model.get("crosshair").case === message.case) followCrosshair();
      if (el.contains(document.activeElement)) viewer.focus();
    },
    layer: (message, [image]) => {
      if (isAwaited(message)) viewer.setLayer(message.layer, volume(image, Uint16Array));
    },
    mask: (message, [mask]) => {
      if (!isAwaited(message)) return;
      const voxels = volume(mask, Uint8Array);
      if (!masks.has(message.case)) {
        masks.set(message.case, voxels);
        viewer.setMask(brushed(message.case));
      } else if (message.replace) viewer.replaceMask(voxels);
    },
    candidates: (message) => {
      if (isAwaited(message)) viewer.setCandidates(message);
    },
    saved: (message, [mask]) => {
      const mine = unsaved.get(message.number);
      clearTimeout(mine?.timer);
      unsaved.delete(message.number);
      if ("verdict" in message) follow.get(thing(message))?.(message.verdict, message.comment);
      const failed = [...unsaved].filter(([, item]) => item.failed);
      failed.forEach(([number]) => unsaved.delete(number));
      const others = failed.filter(([, item]) => thing(item.message) !== thing(message)); // another view's is newer
      others.forEach(([, item]) => send(item.message, item.buffers)); // saving works again
      if (mask && message.view !== view) {
        if (message.case === current?.case || masks.has(message.case)) takeMask(message.case, volume(mask, Uint8Array));
        if (message.case === current?.case) viewer.setMask(brushed(message.case));
      }
      if (mine && !unsaved.size) say(`Saved ${new Date(message.time).toLocaleTimeString()} in ${message.file}`);
    },
    failed: (message) => {
      const mine = unsaved.get(message.number);
      if (mine) {
        clearTimeout(mine.timer);
        mine.failed = true;
        say(`Not saved: ${message.problem}`, true);
      } else if (!message.number && message.view === view) {
        wait(false);
        caseBox.selectedIndex = current?.case ?? -1;
        viewer.keepLayer();
        complain(message.problem);
      }
    },
  };
  const receive = (message, buffers) => answers[message.type](message, buffers);
  model.on("msg:custom", receive);
  model.on("change:cases", listCases);
  model.on("change:crosshair", followCrosshair);
  listCases();
  open(model.get("start"));
  return () => {
    clearTimeout(timer);
    sendMask();
    model.off("msg:custom", receive);
    model.off("change:cases", listCases);
    model.off("change:crosshair", followCrosshair);
    viewer.remove();
  };
}

export default { render };
