/* The viewer in report.html. Cases are read when chosen: from the page itself, which then has each as JSON, or from beside
 * it, where each lies in a script that calls heatmapCase. */
const page = JSON.parse(document.getElementById("viewer-data").textContent);
const stage = document.getElementById("viewer-stage");
const viewer = createViewer(stage, page.colormaps);
const caseBox = document.getElementById("viewer-case");
const note = document.getElementById("viewer-note");
caseBox.append(...page.cases.map((name) => new Option(name)));

/** Unpacks base64 text of gzipped bytes. */
async function unpack(text, type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new type(await new Response(stream).arrayBuffer());
}

async function heatmapCase(header, { map, image, label }) {
  try {
    const volumes = [unpack(map, Uint16Array), unpack(image, Uint16Array), label && unpack(label, Uint8Array)];
    const [scores, grayValues, lesion] = await Promise.all(volumes);
    if (header.case_id !== page.cases[caseBox.selectedIndex]) return; // another one was chosen meanwhile
    stage.hidden = false;
    viewer.show(header, { map: scores, image: grayValues, label: lesion });
    note.hidden = true;
  } catch (error) {
    say(`${header.case_id} cannot be shown: ${error}`);
  }
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

caseBox.addEventListener("change", () => open(caseBox.selectedIndex));
document.getElementById("viewer-previous").addEventListener("click", () => open(caseBox.selectedIndex - 1));
document.getElementById("viewer-next").addEventListener("click", () => open(caseBox.selectedIndex + 1));
open(0);
