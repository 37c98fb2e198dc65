/* The notebook widget: the viewer, a list of cases, and verdicts that Python writes to a file at once. */
const VERDICTS = { accept: "✓", reject: "✗", unsure: "?" };
const MEANING = {
  candidate: "It is abnormal",
  case: "The map shows what is abnormal in this case, and nothing else",
};
const PATIENCE = 5000; // ms

function render({ model, el }) {
  let current = null; // message of the case that is shown
  let opening = false; // whether a case is on its way
  let timer = null; // of the next question to Python
  const unsaved = new Map(); // verdicts that Python has not confirmed, by number
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
  const problem = element("p", { className: "hv hv-problem", role: "alert", hidden: true });
  const stage = element("div");
  const caseVerdict = element("div", { className: "hv hv-verdict" });
  el.append(header, problem, stage, caseVerdict);
  el.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation(); // JupyterLab's keys cut cells
  });

  const viewer = createViewer(stage, model.get("colormaps"), {
    columns: ["Verdict and comment"],
    keys: [
      ["a, r, u", "accept, reject, unsure: the marked candidate"],
      ["Shift + a, r, u", "the same for the case"],
    ],
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
      const verdict = Object.keys(VERDICTS).find((name) => name[0] === event.key.toLowerCase());
      const place = event.shiftKey ? caseVerdict : candidateRow;
      if (!verdict || !place) return false;
      const chosen = place.querySelector(`button[data-verdict="${verdict}"]`);
      if (chosen.getAttribute("aria-pressed") !== "true") chosen.click(); // a held key would take it back
      return true;
    },
  });

  /** Makes the buttons and the comment for a place: a candidate by threshold and voxel, or a case, which has neither. */
  function verdictControls(what, meaning, entry, place) {
    const state = { verdict: entry.verdict, comment: entry.comment };
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
        state.verdict = state.verdict === verdict ? "" : verdict;
        press();
        save("verdict");
      };
      const title = verdict === "accept" ? meaning : "";
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
    follow.set(JSON.stringify([place.case, place.threshold, place.voxel]), (verdict, text) => {
      state.verdict = verdict;
      press();
      if (!typing) comment.value = state.comment = text;
      Object.assign(entry, state);
    });
    const earlier = entry.earlier ? [element("span", { className: "hv-note" }, entry.earlier)] : [];
    return element("span", { className: "hv-judge" }, ...buttons, comment, ...earlier);
  }

  /** Sends a message to Python. */
  function ask(message) {
    try {
      model.send(message);
    } catch {
      wait(false);
      complain("The kernel has died: restart it, and run this cell again. What was saved is in the file.");
    }
  }

  /** Sends a verdict, and keeps it until Python has written it. */
  function send(message) {
    const number = Math.random();
    const late =
      "No answer yet. The kernel is busy, or it died: then restart it, run this cell again, and decide again.";
    unsaved.set(number, { message, timer: setTimeout(() => say(`Not saved. ${late}`, true), PATIENCE) });
    say("Saving …");
    ask({ ...message, number });
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

  const volume = (view, type) => new type(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

  const answers = {
    case: (message, [map, image, label]) => {
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
      viewer.show(message.header, {
        map: volume(map, Uint16Array),
        image: volume(image, Uint8Array),
        label: label && volume(label, Uint8Array),
      });
      if (el.contains(document.activeElement)) viewer.focus();
    },
    layer: (message, [image]) => {
      if (message.case === current.case) viewer.setLayer(message.layer, volume(image, Uint8Array));
    },
    candidates: (message) => {
      if (message.case === current.case) viewer.setCandidates(message);
    },
    saved: (message) => {
      const mine = unsaved.get(message.number);
      clearTimeout(mine?.timer);
      unsaved.delete(message.number);
      follow.get(JSON.stringify([message.case, message.threshold, message.voxel]))?.(message.verdict, message.comment);
      const failed = [...unsaved].filter(([, item]) => item.failed);
      failed.forEach(([number]) => unsaved.delete(number));
      failed.forEach(([, item]) => send(item.message)); // saving works again
      if (mine && !unsaved.size) say(`Saved ${new Date(message.time).toLocaleTimeString()} in ${message.file}`);
    },
    failed: (message) => {
      const mine = unsaved.get(message.number);
      if (mine) {
        clearTimeout(mine.timer);
        mine.failed = true;
        say(`Not saved: ${message.problem}`, true);
      } else if (!message.number) {
        wait(false);
        caseBox.selectedIndex = current?.case ?? -1;
        complain(message.problem);
      }
    },
  };
  const receive = (message, buffers) => answers[message.type](message, buffers);
  model.on("msg:custom", receive);
  model.on("change:cases", listCases);
  listCases();
  open(model.get("start"));
  return () => {
    clearTimeout(timer);
    model.off("msg:custom", receive);
    model.off("change:cases", listCases);
    viewer.remove();
  };
}

export default { render };
