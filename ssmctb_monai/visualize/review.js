/* The notebook widget: the viewer, a list of cases, and verdicts that Python writes to a file at once. */
const VERDICTS = { accept: "✓", reject: "✗", unsure: "?" };
const PATIENCE = 5000; // ms

function render({ model, el }) {
  let current = null; // message of the case that is shown
  let loading = null; // its index, until it comes
  let pendingThreshold = null;
  const unsaved = new Map(); // timers of verdicts that Python has not confirmed

  const caseBox = element("select", { "aria-label": "Case", onchange: () => open(caseBox.selectedIndex) });
  const progress = element("progress");
  const progressText = element("span", { className: "hv-progress" });
  const button = (text, click, properties = {}) =>
    element("button", { type: "button", onclick: click, ...properties }, text);
  const header = element(
    "div",
    { className: "hv hv-head", "data-lm-suppress-shortcuts": "true" },
    button("‹", () => open(caseBox.selectedIndex - 1), { "aria-label": "Previous case" }),
    caseBox,
    button("›", () => open(caseBox.selectedIndex + 1), { "aria-label": "Next case" }),
    button("Next not reviewed", () => open(nextOpen())),
    progress,
    progressText,
  );
  const problem = element("p", { className: "hv hv-problem", role: "alert", hidden: true });
  const stage = element("div");
  const caseVerdict = element("div", { className: "hv hv-verdict", "data-lm-suppress-shortcuts": "true" });
  const saved = element("span", { className: "hv-saved", role: "status" });
  el.append(header, problem, stage, caseVerdict);

  const viewer = createViewer(stage, model.get("colormaps"), {
    columns: ["Verdict and comment"],
    keys: [
      ["a, r, u", "accept, reject, unsure: the candidate under the crosshair"],
      ["A, R, U", "the same for the case"],
    ],
    layer: (index) => model.send({ type: "layer", case: current.case, layer: index }),
    threshold: (value) => {
      clearTimeout(pendingThreshold);
      pendingThreshold = setTimeout(() => model.send({ type: "threshold", case: current.case, threshold: value }), 200);
    },
    decorate: (row, candidate, index, threshold) =>
      row.append(element("td", {}, verdictControls(`candidate ${index + 1}`, candidate, index, threshold))),
    key: (key, candidateRow) => {
      const verdict = Object.keys(VERDICTS).find((name) => name[0] === key.toLowerCase());
      const place = key === key.toLowerCase() ? candidateRow : caseVerdict;
      if (!verdict || !place) return false;
      place.querySelector(`button[data-verdict="${verdict}"]`).click();
      return true;
    },
  });

  /** Makes the buttons and the comment of the case (candidate: null) or of a candidate. */
  function verdictControls(what, entry, candidate, threshold) {
    const state = { verdict: entry.verdict, comment: entry.comment };
    const place = { case: current.case, candidate, threshold };
    let timer = null;
    const save = () => {
      clearTimeout(timer);
      timer = null;
      const number = Math.random();
      unsaved.set(
        number,
        setTimeout(
          () => say("Not saved: the kernel does not answer. Restart it, run this cell again, and decide again.", true),
          PATIENCE,
        ),
      );
      say("Saving …");
      Object.assign(entry, state);
      model.send({ type: "judge", number, ...place, ...state });
    };
    const buttons = Object.entries(VERDICTS).map(([verdict, sign]) =>
      button(
        `${sign} ${verdict}`,
        () => {
          state.verdict = state.verdict === verdict ? "" : verdict;
          press();
          save();
        },
        { "data-verdict": verdict, "aria-label": `${verdict} ${what}` },
      ),
    );
    const press = () =>
      buttons.forEach((item) => item.setAttribute("aria-pressed", item.dataset.verdict === state.verdict));
    const comment = element("input", {
      type: "text",
      placeholder: "comment",
      value: state.comment,
      "aria-label": `Comment on ${what}`,
      oninput: () => {
        state.comment = comment.value;
        clearTimeout(timer);
        timer = setTimeout(save, 500);
      },
      onchange: () => timer && save(),
    });
    press();
    return element(
      "span",
      { className: "hv-judge" },
      ...buttons,
      comment,
      ...(entry.earlier ? [element("span", { className: "hv-note" }, entry.earlier)] : []),
    );
  }

  function say(text, isProblem = false) {
    saved.textContent = text;
    saved.classList.toggle("hv-alarm", isProblem);
  }

  function complain(text) {
    problem.textContent = text;
    problem.hidden = !text;
  }

  function open(index) {
    if (index < 0 || index >= caseBox.options.length) return;
    caseBox.selectedIndex = index;
    loading = index;
    clearTimeout(pendingThreshold);
    complain("");
    el.setAttribute("aria-busy", "true");
    model.send({ type: "open", case: index });
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

  const volume = (view, type) => new type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

  const answers = {
    case: (message, [map, image, label]) => {
      if (message.case !== caseBox.selectedIndex && loading !== null && message.case !== loading) return;
      loading = null;
      el.removeAttribute("aria-busy");
      current = message;
      caseBox.selectedIndex = message.case;
      const failed = "problem" in message;
      stage.hidden = failed;
      complain(failed ? message.problem : "");
      caseVerdict.hidden = failed;
      if (failed) return;
      const title = element("b", {}, `Case ${model.get("cases")[message.case].case_id}`);
      caseVerdict.replaceChildren(title, verdictControls("the case", message, null, null), saved);
      viewer.show(message.header, {
        map: volume(map, Uint16Array),
        image: volume(image, Uint8Array),
        label: label && volume(label, Uint8Array),
      });
    },
    layer: (message, [image]) => {
      if (message.case === current.case) viewer.setLayer(message.layer, volume(image, Uint8Array));
    },
    candidates: (message) => {
      if (message.case === current.case) viewer.setCandidates(message);
    },
    saved: (message) => {
      if (!answered(message)) return;
      if (!unsaved.size) say(`Saved ${new Date(message.time).toLocaleTimeString()} in ${message.file}`);
    },
    failed: (message) => {
      if (answered(message)) {
        say(`Not saved: ${message.problem}`, true);
      } else if (!message.number) {
        el.removeAttribute("aria-busy");
        loading = null;
        caseBox.selectedIndex = current?.case ?? -1;
        complain(message.problem);
      }
    },
  };
  /** Tells whether a message is about a verdict that this view sent; another view of the widget sends its own. */
  const answered = ({ number }) => {
    clearTimeout(unsaved.get(number));
    return unsaved.delete(number);
  };
  const receive = (message, buffers) => answers[message.type](message, buffers);
  model.on("msg:custom", receive);
  model.on("change:cases", listCases);
  listCases();
  open(model.get("start"));
  return () => {
    model.off("msg:custom", receive);
    model.off("change:cases", listCases);
    viewer.remove();
  };
}

export default { render };
