/* The viewer in report.html: cases lie beside the page, each in a script that calls heatmapCase, and are read when chosen. */
const page = JSON.parse(document.getElementById("viewer-data").textContent);
const viewer = createViewer(document.getElementById("viewer-stage"), page.colormaps);
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
  const volumes = [unpack(map, Uint16Array), unpack(image, Uint8Array), label && unpack(label, Uint8Array)];
  const [mapLevels, grayValues, lesion] = await Promise.all(volumes);
  if (header.case_id !== caseBox.value) return; // another one was chosen meanwhile
  note.hidden = true;
  viewer.show(header, { map: mapLevels, image: grayValues, label: lesion });
}

function open(index) {
  if (index < 0 || index >= page.cases.length) return;
  caseBox.selectedIndex = index;
  const script = document.createElement("script");
  script.src = `viewer/${caseBox.value.split("/").map(encodeURIComponent).join("/")}.js`;
  script.onload = () => script.remove();
  script.onerror = () => {
    script.remove();
    note.hidden = false;
    note.textContent = `${decodeURIComponent(script.src.split("/").slice(-2).join("/"))} is not beside this page: keep the folder viewer with it.`;
  };
  document.head.append(script);
}

caseBox.addEventListener("change", () => open(caseBox.selectedIndex));
document.getElementById("viewer-previous").addEventListener("click", () => open(caseBox.selectedIndex - 1));
document.getElementById("viewer-next").addEventListener("click", () => open(caseBox.selectedIndex + 1));
open(0);
