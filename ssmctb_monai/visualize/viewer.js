/* Three linked views of a scan with its anomaly map, in plain JavaScript: for the notebook widget and for report.html.
 *
 * Volumes are in radiological order (x from right to left, y from front to back, z from head to feet), x running
 * fastest, so that views need no flip. Scores come shifted and scaled, in half precision, NaN outside the brain.
 */
const ORANGE = "230, 159, 0";
const LABEL_COLOR = "#33ddff";
const VIEWS = [
  { name: "Axial", across: 0, down: 1, through: 2 },
  { name: "Coronal", across: 0, down: 2, through: 1 },
  { name: "Sagittal", across: 1, down: 2, through: 0 },
];
const OVERLAYS = ["above threshold", "all scores", "off"];
const KEYS = [
  ["click, drag", "move the crosshair"],
  ["wheel, ↑ ↓", "slice by slice through the view under the pointer, or the focused one"],
  ["n, p", "next, previous candidate, which the list marks"],
  ["o", "overlay: above threshold, all scores, off"],
  ["c", "lesion label, as contour and below the slider"],
  ["x", "crosshair"],
];

/** Makes an element; properties starting with "on" are listeners, "aria-…" and "data-…" attributes. */
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Reads a number in half precision, which few browsers do by themselves. */
function fromHalf(bits) {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return NaN;
  const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
  return bits & 0x8000 ? -size : size;
}
const LARGEST = 65504;
const HALVES = Float64Array.from({ length: 65536 }, (_, bits) => fromHalf(bits));

/** A coordinate in mm. */
const formatMm = (value) =>
  value
    .toFixed(1)
    .replace(/^-(?=0\.0$)/, "")
    .replace("-", "\u2212");

/** Position in mm, to the right, the front and the head; letters would mislead, where the origin is a corner. */
const formatPosition = (ras) => `${ras.map(formatMm).join(", ")} mm`;

/** Applies the first three rows of a 4 x 4 matrix to a voxel. */
const transform = (matrix, voxel) =>
  [0, 1, 2].map((row) => matrix[row][3] + [0, 1, 2].reduce((sum, axis) => sum + matrix[row][axis] * voxel[axis], 0));

/**
 * Makes a viewer.
 *
 * @param root element that the viewer is put into.
 * @param colormaps colours by name, each 256 x 3 bytes as an array.
 * @param hooks what the page does: layer(index) fetches the bytes of an image and calls setLayer; threshold(value) finds
 *   candidates and calls setCandidates; decorate(row, candidate, index, threshold) adds cells to a candidate's row, under columns;
 *   key(event, row) acts on a key for the marked candidate and tells whether it did, keys describes these.
 */
function createViewer(root, colormaps, hooks = {}) {
  let scan = null; // header of the case, see viewer.py
  let image = null; // Uint8Array
  let map = null; // Uint16Array, the bits of half precision
  let label = null; // Uint8Array, 0 or 1
  let cursor = [0, 0, 0];
  let crosshair = true;
  let scheduled = false;
  let initial = null; // threshold that the case came with
  let selected = null; // index of the candidate that the list marks
  const colors = new Uint32Array(65536); // of each score
  const gray = Uint32Array.from({ length: 256 }, (_, value) => 0xff000000 | (value << 16) | (value << 8) | value);

  const select = (title, names, change) =>
    element("label", {}, title, element("select", { onchange: change }, ...names.map((name) => new Option(name))));
  const range = (properties) => element("input", { type: "range", ...properties });
  const layerBox = select("Image", [], () => hooks.layer?.(layerBox.lastChild.selectedIndex));
  const overlayBox = select("Overlay", OVERLAYS, () => recolor());
  const colormapBox = select("Colours", Object.keys(colormaps), () => recolor());
  const opacity = range({ min: 0, max: 1, step: 0.05, value: 0.6, oninput: () => recolor() });
  const thresholdRange = range({ step: "any", oninput: () => setThreshold(Number(thresholdRange.value)) });
  const takeNumber = () => {
    if (thresholdNumber.value !== "" && thresholdNumber.value !== formatScore(scan.threshold)) {
      setThreshold(Number(thresholdNumber.value));
    }
  };
  const thresholdNumber = element("input", {
    type: "number",
    step: "any",
    onchange: takeNumber,
    onkeydown: (event) => event.key === "Enter" && takeNumber(), // JupyterLab keeps the change from coming
    "aria-label": "Threshold as a number",
  });
  const contour = element("input", { type: "checkbox", checked: true, onchange: () => redraw() });
  const contourBox = element("label", {}, contour, "Lesion label");
  const legend = element("canvas", { width: 256, height: 1, className: "hv-colors" });
  const legendMark = element("span", { className: "hv-mark" });
  const [legendLow, legendHigh] = [element("span"), element("span")];
  const status = element("p", { className: "hv-status" });
  const sliceRange = range({
    step: 1,
    "aria-label": "Axial slice, from the feet up",
    oninput: () => moveTo(2, fromFeet(Number(sliceRange.value))),
  });
  const profile = element("canvas", { className: "hv-profile", "aria-hidden": "true" });
  const profileNote = element("span", { className: "hv-note" });
  const candidateTitle = element("h4");
  const candidateNote = element("span", { className: "hv-note" });
  const candidateRows = element("tbody");
  const columns = ["", "Score", "Volume", "Position (RAS)", ...(hooks.columns || [])];
  const candidateHead = element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)));
  const candidateBox = element(
    "div",
    { className: "hv-candidates" },
    candidateTitle,
    candidateNote,
    element(
      "div",
      { className: "hv-scroll" },
      element("table", {}, element("thead", {}, candidateHead), candidateRows),
    ),
  );

  const panels = VIEWS.map((view) => {
    const canvas = element("canvas", {
      tabIndex: 0,
      "data-view": view.name.toLowerCase(),
      role: "img",
      "aria-label": `${view.name} view`,
    });
    const caption = element("figcaption");
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const fraction = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      [view.across, view.down].forEach((axis, index) => {
        cursor[axis] = clamp(Math.floor(fraction[index] * scan.shape[axis]), 0, scan.shape[axis] - 1);
      });
      redraw();
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      point(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons & 1 && point(event));
    let turned = 0; // a touchpad sends many small turns
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        turned += clamp(event.deltaMode === 0 ? event.deltaY / 50 : event.deltaY, -1, 1); // a slice a notch
        const steps = Math.trunc(turned);
        turned -= steps;
        if (steps) step(view.through, steps);
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 }[event.key];
      if (steps) {
        event.preventDefault();
        step(view.through, steps);
      }
    });
    const layers = [document.createElement("canvas"), document.createElement("canvas")];
    return { view, canvas, caption, layers, node: element("figure", { className: "hv-view" }, canvas, caption) };
  });

  const views = element("div", { className: "hv-views" }, ...panels.map((panel) => panel.node));
  const viewer = element(
    "div",
    { className: "hv" },
    views,
    element("div", { className: "hv-slices" }, sliceRange, profile, profileNote),
    status,
    element(
      "div",
      { className: "hv-controls" },
      layerBox,
      overlayBox,
      element("label", {}, "Threshold", thresholdRange, thresholdNumber),
      element("label", {}, "Opacity", opacity),
      colormapBox,
      element("span", { className: "hv-legend" }, legendLow, element("span", {}, legend, legendMark), legendHigh),
      contourBox,
      element(
        "details",
        {},
        element("summary", {}, "Keys"),
        element(
          "dl",
          {},
          ...[...KEYS, ...(hooks.keys || [])].flatMap(([keys, what]) => [
            element("dt", {}, keys),
            element("dd", {}, what),
          ]),
        ),
      ),
    ),
    candidateBox,
  );
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(?:INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName))
      return;
    const action = {
      n: () => jump(1),
      p: () => jump(-1),
      o: () => {
        overlayBox.lastChild.selectedIndex = (overlayBox.lastChild.selectedIndex + 1) % OVERLAYS.length;
        recolor();
      },
      c: () => contour.click(),
      x: () => {
        crosshair = !crosshair;
        redraw();
      },
    }[event.key];
    action?.();
    if (action || hooks.key?.(event, candidateRows.children[selected])) event.preventDefault();
  });
  const profilePoint = (event) => {
    if (!(event.buttons & 1)) return;
    const { left, width } = profile.getBoundingClientRect();
    const fraction = (event.clientX - left - 8) / (width - 16);
    moveTo(2, fromFeet(Number(sliceRange.min) + Math.round(fraction * (scan.shape[2] - 1))));
  };
  profile.addEventListener("pointerdown", profilePoint);
  profile.addEventListener("pointermove", profilePoint);
  const observer = new ResizeObserver(() => redraw());
  observer.observe(viewer);
  root.append(viewer);

  /** Turns the index of an axial slice of the scan, counted from the feet, into one of z, and back. */
  const fromFeet = (index) => scan.highest_slice - index;

  function moveTo(axis, index) {
    cursor[axis] = clamp(index, 0, scan.shape[axis] - 1);
    redraw();
  }

  const step = (axis, steps) => moveTo(axis, cursor[axis] + steps);

  /** Score of a voxel by the bits that the map has for it. */
  const score = (bits) => scan.scale[0] + scan.scale[1] * HALVES[bits];

  /** As many decimals as tell a ten-thousandth of the colour scale. */
  const round = (value) => Number(value.toFixed(clamp(3 - Math.floor(Math.log10(scan.scale[1])), 0, 12)));
  const formatScore = (value) => round(value).toString();

  function setThreshold(value) {
    if (!Number.isFinite(value)) return;
    scan.threshold = round(value) === round(initial) ? initial : round(value); // its verdicts go by the exact one
    recolor();
    hooks.threshold?.(scan.threshold);
  }

  /** Finds the colour of every score, and redraws. */
  function recolor() {
    if (!scan) return;
    const palette = colormaps[colormapBox.lastChild.value];
    const mode = overlayBox.lastChild.value;
    const [low, high] = scan.limits;
    const strength = Number(opacity.value) * 255;
    colors.fill(0);
    for (let bits = 0; mode !== "off" && bits < colors.length; bits++) {
      const value = score(bits);
      if (Number.isNaN(value)) continue;
      // No voxel of a candidate may be missing for want of precision
      const rounding = HALVES[bits] === LARGEST ? Infinity : (Math.abs(HALVES[bits]) / 2048) * scan.scale[1];
      const place = clamp((value - low) / (high - low || 1), 0, 1);
      const alpha = mode === "all scores" ? strength * place : value + rounding >= scan.threshold ? strength : 0;
      const start = 3 * Math.round(255 * place);
      colors[bits] =
        (Math.round(alpha) << 24) | (palette[start + 2] << 16) | (palette[start + 1] << 8) | palette[start];
    }
    const pixels = new ImageData(256, 1);
    for (let index = 0; index < 256; index++)
      pixels.data.set([...palette.slice(3 * index, 3 * index + 3), 255], 4 * index);
    legend.getContext("2d").putImageData(pixels, 0, 0);
    legendMark.style.left = `${100 * clamp((scan.threshold - low) / (high - low || 1), 0, 1)}%`;
    thresholdRange.value = scan.threshold;
    thresholdNumber.value = formatScore(scan.threshold);
    redraw();
  }

  /** Redraws with the next frame. */
  function redraw() {
    if (scheduled || !scan || !image) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      draw();
    });
  }

  function draw() {
    const size = scan.shape.map((count, axis) => count * scan.spacing[axis]); // mm
    const width = views.clientWidth;
    const rows = width < 520 ? 1 : 3;
    const across = rows === 3 ? size[0] + size[0] + size[1] : Math.max(size[0], size[1]);
    const scale = Math.min((width - (rows === 3 ? 24 : 0)) / across, 460 / Math.max(size[1], size[2]));
    panels.forEach((panel) => drawView(panel, size, scale));
    drawProfile();
    const feet = fromFeet(cursor[2]);
    sliceRange.value = feet;
    const value = score(map[offset(cursor)]);
    const own = transform(scan.scan_transform, cursor).map(Math.round);
    status.textContent = [
      `RAS ${formatPosition(transform(scan.affine, cursor))}`,
      `voxel (${own.join(", ")})`,
      Number.isNaN(value) ? "outside the brain" : `score ${formatScore(value)}`,
      shows(label) && label[offset(cursor)] ? "in a labelled lesion" : "",
    ]
      .filter(Boolean)
      .join("  ·  ");
  }

  /** Tells whether there is a label, and the reader wants to see it. */
  const shows = (mask) => mask && contour.checked;

  const offset = ([x, y, z]) => x + scan.shape[0] * (y + scan.shape[1] * z);

  function drawView({ view, canvas, caption, layers }, size, scale) {
    const [columns, lines] = [scan.shape[view.across], scan.shape[view.down]];
    const strides = [1, scan.shape[0], scan.shape[0] * scan.shape[1]];
    const start = cursor[view.through] * strides[view.through];
    const [base, overlay] = [new ImageData(columns, lines), new ImageData(columns, lines)];
    const [basePixels, overlayPixels] = [new Uint32Array(base.data.buffer), new Uint32Array(overlay.data.buffer)];
    for (let line = 0, pixel = 0; line < lines; line++) {
      for (let place = start + line * strides[view.down], column = 0; column < columns; column++, pixel++) {
        basePixels[pixel] = gray[image[place]];
        overlayPixels[pixel] = colors[map[place]];
        place += strides[view.across];
      }
    }
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [size[view.across] * scale, size[view.down] * scale];
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    [base, overlay].forEach((pixels, index) => {
      layers[index].width = columns;
      layers[index].height = lines;
      layers[index].getContext("2d").putImageData(pixels, 0, 0);
      context.imageSmoothingEnabled = index === 0; // scores are shown voxel by voxel
      context.drawImage(layers[index], 0, 0, canvas.width, canvas.height);
    });
    const cell = [canvas.width / columns, canvas.height / lines];
    if (shows(label)) drawContour(context, start, strides, view, columns, lines, cell);
    const centre = [(cursor[view.across] + 0.5) * cell[0], (cursor[view.down] + 0.5) * cell[1]];
    if (crosshair) {
      const gap = 10 * ratio;
      context.strokeStyle = "rgba(255, 255, 255, 0.75)";
      context.lineWidth = ratio;
      context.beginPath();
      for (const [from, to] of [
        [0, centre[0] - gap],
        [centre[0] + gap, canvas.width],
      ]) {
        if (to > from) (context.moveTo(from, centre[1]), context.lineTo(to, centre[1]));
      }
      for (const [from, to] of [
        [0, centre[1] - gap],
        [centre[1] + gap, canvas.height],
      ]) {
        if (to > from) (context.moveTo(centre[0], from), context.lineTo(centre[0], to));
      }
      context.stroke();
    }
    drawLetters(context, view, canvas, ratio);
    const axis = [0, 1, 2].reduce((best, row) =>
      Math.abs(scan.affine[row][view.through]) > Math.abs(scan.affine[best][view.through]) ? row : best,
    );
    const place = `${view.name}, ${"xyz"[axis]} = ${formatMm(transform(scan.affine, cursor)[axis])} mm`;
    caption.textContent = view.through === 2 ? `${place}, slice ${fromFeet(cursor[2])} from the feet` : place;
  }

  function drawContour(context, start, strides, view, columns, lines, [width, height]) {
    const inside = (column, line) =>
      column >= 0 &&
      line >= 0 &&
      column < columns &&
      line < lines &&
      label[start + column * strides[view.across] + line * strides[view.down]] === 1;
    context.strokeStyle = LABEL_COLOR;
    context.lineWidth = 1.5 * (window.devicePixelRatio || 1);
    context.beginPath();
    for (let line = 0; line <= lines; line++) {
      for (let column = 0; column <= columns; column++) {
        const here = inside(column, line);
        if (here !== inside(column - 1, line)) {
          context.moveTo(column * width, line * height);
          context.lineTo(column * width, (line + 1) * height);
        }
        if (here !== inside(column, line - 1)) {
          context.moveTo(column * width, line * height);
          context.lineTo((column + 1) * width, line * height);
        }
      }
    }
    context.stroke();
  }

  function drawLetters(context, view, canvas, ratio) {
    context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    context.lineWidth = 3 * ratio;
    context.strokeStyle = "rgba(0, 0, 0, 0.7)";
    context.fillStyle = "#f2d16b";
    const margin = 5 * ratio;
    const write = (text, x, y, align, baseline) => {
      context.textAlign = align;
      context.textBaseline = baseline;
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    };
    const [left, right] = scan.directions[view.across];
    const [top, bottom] = scan.directions[view.down];
    write(left, margin, canvas.height / 2, "left", "middle");
    write(right, canvas.width - margin, canvas.height / 2, "right", "middle");
    if (canvas.height > 60 * ratio) {
      write(top, canvas.width / 2, margin, "center", "top");
      write(bottom, canvas.width / 2, canvas.height - margin, "center", "bottom");
    }
  }

  function drawProfile() {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = profile.getBoundingClientRect();
    profile.width = Math.round(width * ratio);
    profile.height = Math.round(height * ratio);
    const context = profile.getContext("2d");
    context.scale(ratio, ratio);
    const first = Number(sliceRange.min);
    const x = (index) => 8 + ((index - first) / Math.max(1, scan.shape[2] - 1)) * (width - 16);
    const finite = scan.slices.score.filter((value) => value !== null);
    const high = Math.max(...finite, scan.threshold, scan.limits[0]);
    const low = Math.min(...finite, scan.threshold, scan.limits[0]);
    const y = (value) => height - 4 - ((value - low) / (high - low || 1)) * (height - 8);
    context.fillStyle = `rgba(${ORANGE}, 0.3)`;
    scan.slices.lesion.forEach((lesion, place) => {
      const [left, right] = [-0.5, 0.5].map((side) => Math.round(x(scan.slices.index[place] + side)));
      if (lesion && contour.checked) context.fillRect(left, 0, right - left, height);
    });
    const foreground = getComputedStyle(profile).color;
    context.strokeStyle = foreground;
    context.setLineDash([4, 3]);
    context.beginPath();
    context.moveTo(0, y(scan.threshold));
    context.lineTo(width, y(scan.threshold));
    context.stroke();
    context.setLineDash([]);
    context.strokeStyle = getComputedStyle(profile).getPropertyValue("--hv-curve");
    context.lineWidth = 2;
    context.lineCap = "round"; // one slice alone is a point
    context.beginPath();
    if (finite.length === 1) context.moveTo(x(scan.slices.index[0]), y(finite[0]));
    scan.slices.score.forEach(
      (value, place) => value !== null && context.lineTo(x(scan.slices.index[place]), y(value)),
    );
    context.stroke();
    context.strokeStyle = foreground;
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x(fromFeet(cursor[2])), 0);
    context.lineTo(x(fromFeet(cursor[2])), height);
    context.stroke();
  }

  function jump(steps) {
    const count = scan?.candidates.length;
    if (count) goTo(selected === null ? (steps > 0 ? 0 : count - 1) : (selected + steps + count) % count);
  }

  function goTo(index) {
    cursor = [...scan.candidates[index].voxel];
    mark(index);
    redraw();
  }

  /** Marks the candidate that peaks in a voxel, if there is one. */
  function markAt(voxel) {
    const index = scan.candidates.findIndex((candidate) => String(candidate.voxel) === String(voxel));
    mark(index < 0 ? null : index);
  }

  /** Marks a candidate in the list, or none. */
  function mark(index) {
    selected = index;
    [...candidateRows.children].forEach((row, place) => row.setAttribute("aria-current", place === index));
    candidateRows.children[index]?.scrollIntoView({ block: "nearest" });
  }

  function setCandidates({ threshold, candidates, total }) {
    if (threshold !== scan.threshold) return; // it was moved on meanwhile
    const peak = selected === null ? null : scan.candidates[selected].voxel;
    scan.candidates = candidates;
    const shown = total > candidates.length ? `, the ${candidates.length} highest shown` : "";
    const source = scan.threshold_given ? "" : " No threshold came with the map; the first one flags 1 % of the brain.";
    candidateTitle.textContent = `${total} candidate${total === 1 ? "" : "s"} at or above ${formatScore(threshold)}${shown}`;
    candidateNote.textContent = `Connected voxels, at least ${scan.min_size}.${source}`;
    candidateRows.replaceChildren(
      ...candidates.map((candidate, index) => {
        const row = element(
          "tr",
          { "data-candidate": index },
          element(
            "td",
            {},
            element(
              "button",
              { type: "button", onclick: () => goTo(index), "aria-label": `Go to candidate ${index + 1}` },
              `${index + 1}`,
            ),
          ),
          element("td", {}, formatScore(candidate.score)),
          element("td", {}, `${candidate.volume.toFixed(candidate.volume < 1 ? 2 : 1)} ml`),
          element("td", {}, formatPosition(candidate.position)),
        );
        hooks.decorate?.(row, candidate, index, threshold);
        return row;
      }),
    );
    markAt(peak);
    redraw();
  }

  function setLayer(index, bytes) {
    layerBox.lastChild.selectedIndex = index;
    image = bytes;
    redraw();
  }

  /** Shows a case: its header, see viewer.py, and the bytes of map, first image and lesion mask. */
  function show(header, buffers) {
    const name = scan?.layers[layerBox.lastChild.selectedIndex];
    scan = header;
    initial = scan.threshold;
    map = buffers.map;
    label = buffers.label;
    layerBox.lastChild.replaceChildren(...scan.layers.map((name) => new Option(name)));
    contourBox.hidden = !label;
    layerBox.hidden = scan.layers.length < 2;
    [thresholdRange.min, thresholdRange.max] = scan.limits;
    legendLow.textContent = formatScore(scan.limits[0]);
    legendHigh.textContent = formatScore(scan.limits[1]);
    sliceRange.min = fromFeet(scan.shape[2] - 1);
    sliceRange.max = fromFeet(0);
    profileNote.textContent = `Slice score, from the feet (left) to the head; dashed: threshold of voxels${label ? "; shaded: slices with lesion" : ""}`;
    cursor = [...scan.start];
    selected = null;
    setCandidates(scan);
    markAt(scan.start);
    setLayer(0, buffers.image);
    recolor();
    if (scan.layers.indexOf(name) > 0) hooks.layer?.(scan.layers.indexOf(name)); // as in the case before
  }

  return {
    show,
    setLayer,
    setCandidates,
    focus: () => panels[0].canvas.focus({ preventScroll: true }),
    remove: () => observer.disconnect(),
  };
}
