/* The viewer in report.html. Cases are read when chosen: from the page itself, which then has each as JSON, or from beside
 * it, where each lies in a script that calls heatmapCase. */
const page = JSON.parse(document.getElementById("viewer-data").textContent);
const stage = document.getElementById("viewer-stage");
const viewer = createViewer(stage, page.colormaps, { moved: follow });
const caseBox = document.getElementById("viewer-case");
const note = document.getElementById("viewer-note");
const besideBox = document.getElementById("viewer-beside");
const besideStage = document.getElementById("viewer-beside-stage");
let beside = null; // viewer of another method's map, made when it is asked for
let place = null; // of the crosshair, in mm
let shown = null; // image, lesion and what other methods found, of the case that is shown
caseBox.append(...page.cases.map((name) => new Option(name)));

/** Lets the other method's crosshair follow. */
function follow(position) {
  place = position;
  beside?.setPosition(position);
}

/** Lets this method's crosshair follow that of the other one. */
function lead(position) {
  place = position;
  viewer.setPosition(position);
}

/** Unpacks base64 text of gzipped bytes. */
async function unpack(text, type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new type(await new Response(stream).arrayBuffer());
}

async function heatmapCase(header, { map, image, label }, others = {}) {
  try {
    const volumes = [unpack(map, Uint16Array), unpack(image, Uint16Array), label && unpack(label, Uint8Array)];
    const [scores, grayValues, lesion] = await Promise.all(volumes);
    if (header.case_id !== page.cases[caseBox.selectedIndex]) return; // another one was chosen meanwhile
    stage.hidden = false;
    viewer.show(header, { map: scores, image: grayValues, label: lesion });
    note.hidden = true;
    shown = { image: grayValues, label: lesion, others };
    const wanted = besideBox.value;
    besideBox.replaceChildren(new Option("nothing", ""), ...Object.keys(others).map((name) => new Option(name)));
    besideBox.value = wanted in others ? wanted : "";
    besideBox.parentElement.hidden = besideBox.options.length < 2;
    await showBeside();
  } catch (error) {
    say(`${header.case_id} cannot be shown: ${error}`);
  }
}

/** Shows the map of the method that was chosen beside that of the page, their crosshairs at one position. */
async function showBeside() {
  const current = shown;
  const { image, label, others } = current;
  const name = besideBox.value;
  besideStage.parentElement.hidden = !name;
  stage.previousElementSibling.hidden = !name;
  if (!name) return;
  stage.previousElementSibling.textContent = page.method;
  besideStage.previousElementSibling.textContent = name;
  beside ??= createViewer(besideStage, page.colormaps, { moved: lead });
  const [header, { map }] = others[name];
  const scores = await unpack(map, Uint16Array);
  if (shown !== current || besideBox.value !== name) return; // another one was chosen meanwhile
  beside.show(header, { map: scores, image, label });
  if (place) beside.setPosition(place);
}

/** Says why there is no scan. */
function say(text) {
  stage.hidden = true;
  note.hidden = false;
  note.textContent = text;
}

function open(index) {
  if (index < 0 || index >= page.cases.length) return;
  caseBox.selectedIndex = index;
  say("Reading the scan …");
  const embedded = [...document.scripts].find((script) => script.dataset.case === page.cases[index]);
  if (embedded) {
    heatmapCase(...JSON.parse(embedded.textContent));
    return;
  }
  const file = `viewer/${page.cases[index]}.js`;
  const script = document.createElement("script");
  script.src = file.split("/").map(encodeURIComponent).join("/");
  script.onload = () => script.remove();
  script.onerror = () => {
    script.remove();
    say(`${file} is not beside this page: keep the folder viewer with it.`);
  };
  document.head.append(script);
}

besideBox.addEventListener("change", showBeside);
caseBox.addEventListener("change", () => open(caseBox.selectedIndex));
document.getElementById("viewer-previous").addEventListener("click", () => open(caseBox.selectedIndex - 1));
document.getElementById("viewer-next").addEventListener("click", () => open(caseBox.selectedIndex + 1));
open(0);
