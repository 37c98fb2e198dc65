/* Three linked views of a scan with its anomaly map, in plain JavaScript: for the notebook widget and for report.html.
 *
 * Volumes are in radiological order (x from right to left, y from front to back, z from head to feet), x running
 * fastest, so that views need no flip. Scores and grey values come shifted and scaled, in half precision; scores are NaN
 * outside the brain.
 */
const ORANGE = "230, 159, 0";
const LABEL_COLOR = "#33ddff";
const MASK_COLOR = "#5dff6b";
const RULER_COLOR = "#ffe680";
const VIEWS = [
  { name: "Axial", across: 0, down: 1, through: 2 },
  { name: "Coronal", across: 0, down: 2, through: 1 },
  { name: "Sagittal", across: 1, down: 2, through: 0 },
];
const OVERLAYS = ["above threshold", "all scores", "off"];
const LARGEST_ZOOM = 16;
const HELP = [
  ["click, drag", "move the crosshair, or use the tool that is chosen"],
  ["right button: drag", "window (left, right) and level (up, down)"],
  ["Ctrl + wheel, Ctrl + drag, pinch", "zoom"],
  ["middle button or Shift: drag; two fingers", "pan"],
  ["wheel, ↑ ↓, Page ↑ ↓", "slice by slice through the view under the pointer, or the focused one"],
  ["r", "reset the view: zoom, pan, window and level"],
  ["Esc", "back from a tool to the crosshair"],
  ["n, p", "next, previous candidate, which the list marks"],
  ["o", "overlay: above threshold, all scores, off"],
  ["c", "lesion label, as contour and below the slider"],
  ["x", "crosshair"],
  ["?", "this list"],
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
const HALVES = Float64Array.from({ length: 65536 }, (_, bits) => fromHalf(bits));

/** A grey value of the image, in its own units. */
const formatGray = (value) => Number(value.toPrecision(4)).toString();

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
 * @param hooks what the page does: layer(index) fetches the values of an image and calls setLayer; threshold(value) finds
 *   candidates and calls setCandidates; decorate(row, candidate, index, threshold) adds cells to a candidate's row, under
 *   columns; key(event, row) acts on a key for the marked candidate and tells whether it did, keys describes these; tools
 *   are more buttons; mask(threshold, replace) fetches what the brush begins with and calls setMask, or what is flagged
 *   and calls replaceMask, remember(what, takeBack) keeps how to undo a stroke of the brush, moved(position) follows the
 *   crosshair in mm.
 */
function createViewer(root, colormaps, hooks = {}) {
  let scan = null; // header of the case, see viewer.py
  let image = null; // Uint16Array, the bits of half precision, as those of the map
  let map = null; // Uint16Array
  let label = null; // Uint8Array, 0 or 1
  let layer = 0; // index of the image, while another one may be on its way
  let cursor = [0, 0, 0];
  let crosshair = true;
  let tool = "crosshair"; // or "ruler", "brush", "eraser"
  let zoom = 1;
  let centre = [0, 0, 0]; // of what is seen, in voxels
  let contrast = { level: 0.5, width: 1 }; // of grey values as they come
  let ruler = null; // view, slice, and both ends in its voxels
  let mask = null; // voxels that a brush corrects, and how to save them
  let dab = null; // view and place of the brush
  let announced = ""; // place of the crosshair that others know
  let scheduled = false;
  let initial = null; // threshold that the case came with
  let selected = null; // index of the candidate that the list marks
  const colors = new Uint32Array(65536); // of each score
  const grays = new Uint32Array(65536);

  const select = (title, names, change) =>
    element("label", {}, title, element("select", { onchange: change }, ...names.map((name) => new Option(name))));
  const range = (properties) => element("input", { type: "range", ...properties });
  const layerBox = select("Image", [], () => chooseLayer(layerBox.lastChild.selectedIndex));
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
  const tools = { crosshair: "Crosshair", ruler: "Ruler", ...(hooks.mask && { brush: "Brush", eraser: "Eraser" }) };
  const toolButtons = Object.entries(tools).map(([name, title]) =>
    element("button", { type: "button", "data-tool": name, onclick: () => choose(name) }, title),
  );
  const radius = range({ min: 0.5, max: 20, step: 0.5, value: 4, oninput: () => redraw() });
  const fromThreshold = element(
    "button",
    {
      type: "button",
      onclick: () => hooks.mask(scan.threshold, true),
      title: "The mask becomes what the threshold flags",
    },
    "Mask from threshold",
  );
  const brushBox = element("span", { className: "hv-brush" }, element("label", {}, "Radius", radius), fromThreshold);
  const help = element(
    "dialog",
    { className: "hv-help", "aria-label": "Keys and gestures", onclick: (event) => event.target === help && help.close() },
    element(
      "dl",
      {},
      ...[...HELP, ...(hooks.keys || [])].flatMap(([keys, what]) => [
        element("dt", {}, keys),
        element("dd", {}, what),
      ]),
    ),
    element("button", { type: "button", onclick: () => help.close() }, "Close"),
  );
  const toolBox = element(
    "div",
    { className: "hv-tools", role: "toolbar", "aria-label": "Tools" },
    element("span", { className: "hv-group" }, ...toolButtons),
    brushBox,
    ...(hooks.tools || []),
    element("button", { type: "button", onclick: () => reset(), title: "Key r" }, "Reset view"),
    element("button", { type: "button", onclick: () => help.showModal(), title: "Key ?" }, "? Help"),
  );
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
  const candidateTable = element("table", {}, element("thead", {}, candidateHead), candidateRows);
  const candidateList = element("div", { className: "hv-scroll" }, candidateTable);
  const candidateBox = element("div", { className: "hv-candidates" }, candidateTitle, candidateNote, candidateList);

  const panels = VIEWS.map((view) => {
    const canvas = element("canvas", {
      tabIndex: 0,
      "data-view": view.name.toLowerCase(),
      role: "img",
      "aria-label": `${view.name} view`,
    });
    const caption = element("figcaption");
    const layers = [document.createElement("canvas"), document.createElement("canvas")];
    const node = element("figure", { className: "hv-view" }, canvas, caption);
    const panel = { view, canvas, caption, layers, node };
    listen(panel);
    return panel;
  });

  const views = element("div", { className: "hv-views" }, ...panels.map((panel) => panel.node));
  const viewer = element(
    "div",
    { className: "hv" },
    views,
    toolBox,
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
    ),
    candidateBox,
    help,
  );
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(?:INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName))
      return;
    const action = {
      r: reset,
      "?": () => help.showModal(),
      Escape: tool !== "crosshair" && !help.open ? () => choose("crosshair") : undefined,
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
  choose(tool);

  /** Turns the index of an axial slice of the scan, counted from the feet, into one of z, and back. */
  const fromFeet = (index) => scan.highest_slice - index;

  /** How many voxels of an axis are seen, and the first of them. */
  const seen = (axis) => scan.shape[axis] / zoom;
  const origin = (axis) => clamp(centre[axis] - seen(axis) / 2, 0, scan.shape[axis] - seen(axis));

  /** Where a pointer is in a view, in voxels across and down, of which the first begins at 0. */
  function pointAt({ view, canvas }, event) {
    const box = canvas.getBoundingClientRect();
    const fraction = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [view.across, view.down].map((axis, index) =>
      clamp(origin(axis) + fraction[index] * seen(axis), 0, scan.shape[axis]),
    );
  }

  /** Zooms by a factor; what is under the pointer stays there. */
  function zoomAt(panel, event, factor) {
    if (zoom === 1) centre = cursor.map((index) => index + 0.5); // that of the other views
    const [fixed, before] = [pointAt(panel, event), [0, 1, 2].map((axis) => [origin(axis), seen(axis)])];
    zoom = clamp(zoom * factor, 1, LARGEST_ZOOM);
    [panel.view.across, panel.view.down].forEach((axis, index) => {
      const fraction = (fixed[index] - before[axis][0]) / before[axis][1];
      centre[axis] = fixed[index] + (0.5 - fraction) * seen(axis);
    });
    redraw();
  }

  /** Pans by the way of a pointer. */
  function pan(panel, from, to) {
    const [start, end] = [pointAt(panel, from), pointAt(panel, to)];
    [panel.view.across, panel.view.down].forEach((axis, index) => {
      centre[axis] = origin(axis) + seen(axis) / 2 - (end[index] - start[index]);
    });
    redraw();
  }

  function reset() {
    zoom = 1;
    centre = scan.shape.map((count) => count / 2);
    contrast = { level: 0.5, width: 1 };
    regray();
  }

  function choose(name) {
    tool = name;
    toolButtons.forEach((button) => button.setAttribute("aria-pressed", button.dataset.tool === tool));
    views.dataset.tool = tool;
    brushBox.hidden = !hooks.mask || !isBrush();
    if (isBrush() && !mask) hooks.mask(scan.threshold, false);
    redraw();
  }

  function isBrush() {
    return tool === "brush" || tool === "eraser";
  }

  /** What a pointer does from when it goes down: move and end follow it, cancel takes back what it did. */
  const gestures = {
    crosshair(panel, event) {
      const before = [...cursor];
      const move = (to) => {
        pointAt(panel, to).forEach((place, index) => {
          const axis = [panel.view.across, panel.view.down][index];
          cursor[axis] = Math.min(Math.floor(place), scan.shape[axis] - 1);
        });
        redraw();
      };
      const cancel = () => {
        cursor = before;
        redraw();
      };
      if (event.pointerType !== "touch") move(event); // a finger may be about to scroll the page
      return { move, end: move, cancel };
    },
    ruler(panel, event) {
      const { view } = panel;
      const [before, from] = [ruler, pointAt(panel, event)];
      const set = (value) => {
        ruler = value;
        redraw();
      };
      set(null);
      const move = (to) => set({ view, slice: cursor[view.through], from, to: pointAt(panel, to) });
      return { move, cancel: () => set(before) };
    },
    brush: (panel, event) => stroke(panel, event, 1),
    eraser: (panel, event) => stroke(panel, event, 0),
    pan(panel, event) {
      const move = (to) => {
        pan(panel, event, to);
        event = to;
      };
      return { move };
    },
    zoom(panel, event) {
      let last = event;
      const move = (to) => {
        zoomAt(panel, event, 2 ** ((last.clientY - to.clientY) / 100));
        last = to;
      };
      return { move };
    },
    window(panel, event) {
      const { level, width } = contrast;
      const move = (to) => {
        contrast = {
          level: level + ((event.clientY - to.clientY) / 300) * width,
          width: clamp(width * 2 ** ((to.clientX - event.clientX) / 150), 1e-3, 1e3),
        };
        regray();
      };
      return { move };
    },
  };

  function gestureOf(event) {
    if (event.button === 2) return "window";
    if (event.button === 1 || event.shiftKey) return "pan";
    return event.ctrlKey || event.metaKey ? "zoom" : tool;
  }

  /** Two fingers zoom by their distance, and pan by their middle. */
  function pinch(panel, pointers) {
    const span = () => {
      const [a, b] = [...pointers.values()];
      const [x, y] = [a.clientX - b.clientX, a.clientY - b.clientY];
      return { clientX: a.clientX - x / 2, clientY: a.clientY - y / 2, size: Math.hypot(x, y) || 1 };
    };
    let last = span();
    const move = () => {
      const now = span();
      pan(panel, last, now);
      zoomAt(panel, now, now.size / last.size);
      last = now;
    };
    return { move };
  }

  /** A stroke of the brush or the eraser, which give voxels a value. */
  function stroke(panel, event, value) {
    if (!mask) return { move() {} }; // it is on its way
    const { voxels, save } = mask;
    const before = new Map();
    let last = pointAt(panel, event);
    const move = (to) => {
      const next = pointAt(panel, to);
      for (const place of disc(panel.view, last, next)) {
        if (!before.has(place)) before.set(place, voxels[place]);
        voxels[place] = value;
      }
      last = next;
      redraw();
    };
    const cancel = () => {
      before.forEach((old, place) => (voxels[place] = old));
      redraw();
    };
    const end = () => {
      save(voxels);
      hooks.remember(value ? "the stroke of the brush" : "the stroke of the eraser", () => {
        cancel();
        save(voxels);
      });
    };
    move(event);
    return { move, end, cancel };
  }

  /** Voxels of the slice whose centres lie within the brush's radius of a line. */
  function disc(view, from, to) {
    const axes = [view.across, view.down];
    const [a, b] = [from, to].map((point) => point.map((place, index) => place * scan.spacing[axes[index]])); // mm
    const along = [b[0] - a[0], b[1] - a[1]];
    const length = along[0] ** 2 + along[1] ** 2 || 1;
    const size = Number(radius.value);
    const [columns, lines] = axes.map((axis, index) => {
      const [low, high] = [Math.min(a[index], b[index]) - size, Math.max(a[index], b[index]) + size];
      const first = Math.max(0, Math.floor(low / scan.spacing[axis]));
      const last = Math.min(scan.shape[axis] - 1, Math.floor(high / scan.spacing[axis]));
      return Array.from({ length: last - first + 1 }, (_, place) => first + place);
    });
    const places = [];
    for (const line of lines) {
      for (const column of columns) {
        const [x, y] = [(column + 0.5) * scan.spacing[axes[0]] - a[0], (line + 0.5) * scan.spacing[axes[1]] - a[1]];
        const share = clamp((x * along[0] + y * along[1]) / length, 0, 1);
        if (Math.hypot(x - share * along[0], y - share * along[1]) > size) continue;
        const voxel = [...cursor];
        [voxel[axes[0]], voxel[axes[1]]] = [column, line];
        places.push(offset(voxel));
      }
    }
    return places;
  }

  /** Lets pointers, wheel and arrow keys act on a view. */
  function listen(panel) {
    const { view, canvas } = panel;
    const pointers = new Map();
    let gesture = null;
    const finish = (how, event) => {
      pointers.delete(event.pointerId);
      gesture?.[how]?.(event);
      gesture = null;
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      gesture?.cancel?.(); // by a second finger
      pointers.set(event.pointerId, event);
      gesture = pointers.size > 1 ? pinch(panel, pointers) : gestures[gestureOf(event)](panel, event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (isBrush()) {
        dab = { view, at: pointAt(panel, event) };
        redraw();
      }
      if (!pointers.has(event.pointerId)) return;
      pointers.set(event.pointerId, event);
      gesture?.move(event);
    });
    canvas.addEventListener("pointerup", (event) => finish("end", event));
    canvas.addEventListener("pointercancel", (event) => finish("cancel", event));
    canvas.addEventListener("pointerleave", () => {
      dab = null;
      redraw();
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("mousedown", (event) => event.button === 1 && event.preventDefault()); // no scrolling by it
    canvas.addEventListener("touchmove", (event) => event.touches.length > 1 && event.preventDefault(), {
      passive: false,
    });
    let turned = 0; // a touchpad sends many small turns
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const turn = event.deltaMode === 0 ? event.deltaY / 50 : event.deltaY;
        if (event.ctrlKey || event.metaKey) {
          zoomAt(panel, event, 2 ** clamp(-turn / 2, -0.5, 0.5));
          return;
        }
        turned += clamp(turn, -1, 1); // a slice a notch
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
  }

  function moveTo(axis, index) {
    cursor[axis] = clamp(index, 0, scan.shape[axis] - 1);
    redraw();
  }

  const step = (axis, steps) => moveTo(axis, cursor[axis] + steps);

  /** Score of a voxel by the bits that the map has for it. */
  const score = (bits) => scan.scale[0] + scan.scale[1] * HALVES[bits];

  /** How far the score of a voxel may be from that of its bits; below 2 ** -14 half precision is even. */
  const rounding = (bits) => (Math.max(Math.abs(HALVES[bits]), 2 ** -14) / 2048) * scan.scale[1];

  /** As many decimals as tell a ten-thousandth of the colour scale, fewer where there is a greater error. */
  const round = (value, error = 0) => {
    const width = scan.limits[1] - scan.limits[0] || scan.scale[1];
    const decimals = Math.min(3 - Math.floor(Math.log10(width)), -Math.ceil(Math.log10(error)));
    return Number(value.toFixed(clamp(decimals, 0, 12)));
  };
  const formatScore = (value, error) => Number(round(value, error).toPrecision(7)).toString(); // maps are float32

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
      const place = clamp((value - low) / (high - low || 1), 0, 1);
      const alpha = mode === "all scores" ? strength * place : value + rounding(bits) >= scan.threshold ? strength : 0;
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

  /** Finds the grey of every value, and redraws. */
  function regray() {
    const low = contrast.level - contrast.width / 2;
    for (let bits = 0; bits < grays.length; bits++) {
      const value = Math.round(255 * clamp((HALVES[bits] - low) / contrast.width, 0, 1));
      grays[bits] = 0xff000000 | (value << 16) | (value << 8) | value;
    }
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
    const bits = map[offset(cursor)];
    const value = score(bits);
    const own = transform(scan.scan_transform, cursor).map(Math.round);
    const position = transform(scan.affine, cursor);
    const chosen = layerBox.lastChild.selectedIndex;
    const grayOf = (share) => formatGray(scan.windows[layer][0] + scan.windows[layer][1] * share);
    const [low, high] = [-1, 1].map((side) => contrast.level + (side * contrast.width) / 2);
    status.textContent = [
      `RAS ${formatPosition(position)}`,
      `voxel (${own.join(", ")})`,
      Number.isNaN(value) ? "outside the brain" : `score ${formatScore(value, rounding(bits))}`,
      shows(label) && label[offset(cursor)] ? "in a labelled lesion" : "",
      `${scan.layers[layer]} ${grayOf(HALVES[image[offset(cursor)]])}`,
      chosen === layer ? "" : `${scan.layers[chosen]}: loading …`,
      low || high !== 1 ? `window ${grayOf(low)} to ${grayOf(high)}` : "",
      ruler ? `ruler ${formatMm(rulerLength())} mm` : "",
    ]
      .filter(Boolean)
      .join("  ·  ");
    if (String(cursor) !== announced) {
      announced = String(cursor);
      hooks.moved?.(position);
    }
  }

  /** Length of the ruler in mm, also where axes are oblique. */
  function rulerLength() {
    const way = [0, 0, 0];
    way[ruler.view.across] = ruler.to[0] - ruler.from[0];
    way[ruler.view.down] = ruler.to[1] - ruler.from[1];
    const start = transform(scan.affine, [0, 0, 0]);
    return Math.hypot(...transform(scan.affine, way).map((place, axis) => place - start[axis]));
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
        basePixels[pixel] = grays[image[place]];
        overlayPixels[pixel] = colors[map[place]];
        place += strides[view.across];
      }
    }
    const ratio = devicePixelRatio || 1;
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
      const part = [origin(view.across), origin(view.down), seen(view.across), seen(view.down)];
      context.drawImage(layers[index], ...part, 0, 0, canvas.width, canvas.height);
    });
    const cell = [canvas.width / seen(view.across), canvas.height / seen(view.down)];
    const onCanvas = ([x, y]) => [(x - origin(view.across)) * cell[0], (y - origin(view.down)) * cell[1]];
    const outlined = (volume) => (column, line) =>
      column >= 0 &&
      line >= 0 &&
      column < columns &&
      line < lines &&
      volume[start + column * strides[view.across] + line * strides[view.down]] === 1;
    const outline = (volume, color, thickness) => {
      context.strokeStyle = color;
      context.lineWidth = thickness * ratio;
      drawOutline(context, outlined(volume), columns, lines, onCanvas);
    };
    if (shows(label)) outline(label, LABEL_COLOR, 1.5);
    if (mask && overlayBox.lastChild.value !== "off") outline(mask.voxels, MASK_COLOR, 2);
    const middle = onCanvas([cursor[view.across] + 0.5, cursor[view.down] + 0.5]);
    if (crosshair) {
      const gap = 10 * ratio;
      context.strokeStyle = "rgba(255, 255, 255, 0.75)";
      context.lineWidth = ratio;
      context.beginPath();
      for (const [from, to] of [
        [0, middle[0] - gap],
        [middle[0] + gap, canvas.width],
      ]) {
        if (to > from) (context.moveTo(from, middle[1]), context.lineTo(to, middle[1]));
      }
      for (const [from, to] of [
        [0, middle[1] - gap],
        [middle[1] + gap, canvas.height],
      ]) {
        if (to > from) (context.moveTo(middle[0], from), context.lineTo(middle[0], to));
      }
      context.stroke();
    }
    if (ruler?.view === view && ruler.slice === cursor[view.through]) {
      drawRuler(context, onCanvas(ruler.from), onCanvas(ruler.to), ratio);
    }
    if (dab?.view === view && isBrush()) {
      const size = Number(radius.value);
      const radii = [view.across, view.down].map((axis, index) => (size / scan.spacing[axis]) * cell[index]);
      context.strokeStyle = MASK_COLOR;
      context.lineWidth = ratio;
      context.beginPath();
      context.ellipse(...onCanvas(dab.at), ...radii, 0, 0, 2 * Math.PI);
      context.stroke();
    }
    drawLetters(context, view, canvas, ratio);
    const axis = [0, 1, 2].reduce((best, row) =>
      Math.abs(scan.affine[row][view.through]) > Math.abs(scan.affine[best][view.through]) ? row : best,
    );
    const place = `${view.name}, ${"xyz"[axis]} = ${formatMm(transform(scan.affine, cursor)[axis])} mm`;
    caption.textContent = view.through === 2 ? `${place}, slice ${fromFeet(cursor[2])} from the feet` : place;
  }

  /** Draws the edges between voxels that are inside and those that are not. */
  function drawOutline(context, inside, columns, lines, onCanvas) {
    context.beginPath();
    for (let line = 0; line <= lines; line++) {
      for (let column = 0; column <= columns; column++) {
        const here = inside(column, line);
        const ends = [];
        if (here !== inside(column - 1, line)) ends.push([column, line + 1]);
        if (here !== inside(column, line - 1)) ends.push([column + 1, line]);
        for (const end of ends) {
          context.moveTo(...onCanvas([column, line]));
          context.lineTo(...onCanvas(end));
        }
      }
    }
    context.stroke();
  }

  function drawRuler(context, from, to, ratio) {
    context.strokeStyle = RULER_COLOR;
    context.fillStyle = RULER_COLOR;
    context.lineWidth = 1.5 * ratio;
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
    for (const [x, y] of [from, to]) context.fillRect(x - 2 * ratio, y - 2 * ratio, 4 * ratio, 4 * ratio);
    const [x, y] = [(from[0] + to[0]) / 2, (from[1] + to[1]) / 2];
    writeOver(context, `${formatMm(rulerLength())} mm`, x, y - 4 * ratio, "center", "bottom", RULER_COLOR, ratio);
  }

  /** Writes a text that can be read on any ground. */
  function writeOver(context, text, x, y, align, baseline, color, ratio) {
    Object.assign(context, { textAlign: align, textBaseline: baseline, fillStyle: color });
    Object.assign(context, { lineWidth: 3 * ratio, strokeStyle: "rgba(0, 0, 0, 0.7)" });
    context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  }

  function drawLetters(context, view, canvas, ratio) {
    const margin = 5 * ratio;
    const write = (text, ...place) => writeOver(context, text, ...place, "#f2d16b", ratio);
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
    const ratio = devicePixelRatio || 1;
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
    centre = cursor.map((place) => place + 0.5);
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
    const row = candidateRows.children[index];
    if (!row) return;
    const { top, bottom } = candidateHead.getBoundingClientRect(); // the page itself is to stay where it is
    const [above, below] = [row.getBoundingClientRect().top - bottom, row.getBoundingClientRect().bottom - top];
    candidateList.scrollTop += Math.min(above, 0) || Math.max(below - candidateList.clientHeight, 0);
  }

  function setCandidates({ threshold, candidates, total }) {
    if (threshold !== scan.threshold) return; // it was moved on meanwhile
    const peak = selected === null ? null : scan.candidates[selected].voxel;
    scan.candidates = candidates;
    const shown = total > candidates.length ? `, the ${candidates.length} highest shown` : "";
    const first = " No threshold came with the map; the first one flags 1 % of the brain, or less.";
    const source = scan.threshold_given ? "" : first;
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

  /** Asks for an image; the one before is shown until it comes. */
  function chooseLayer(index) {
    layerBox.lastChild.selectedIndex = index;
    if (index !== layer) hooks.layer?.(index);
    redraw();
  }

  function setLayer(index, values) {
    if (index !== layerBox.lastChild.selectedIndex) return; // another one was chosen meanwhile
    [layer, image] = [index, values];
    redraw();
  }

  /** Gives the brush a mask: its voxels, and how to save them. */
  function setMask(value) {
    mask = value;
    redraw();
  }

  /** Gives the mask's own array, which undoing goes by, other voxels; they are saved, and can be taken back. */
  function replaceMask(values) {
    const { voxels, save } = mask;
    const before = voxels.slice();
    const set = (content) => {
      voxels.set(content);
      save(voxels);
      redraw();
    };
    set(values);
    hooks.remember("the mask from the threshold", () => set(before));
  }

  /** Moves the crosshair to a position in mm, or as near as the scan reaches, for others that are linked. */
  function setPosition(position) {
    if (!scan) return; // the first case could not be shown
    cursor = transform(scan.from_ras, position).map((place, axis) => clamp(Math.round(place), 0, scan.shape[axis] - 1));
    announced = String(cursor);
    redraw();
  }

  /** Shows a case: its header, see viewer.py, map, first image and lesion mask, and what a brush made of it before. */
  function show(header, buffers, corrected = null) {
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
    announced = "";
    [zoom, centre] = [1, scan.shape.map((count) => count / 2)];
    [ruler, mask, dab, selected] = [null, corrected, null, null];
    choose("crosshair");
    regray();
    setCandidates(scan);
    markAt(scan.start);
    setLayer(0, buffers.image);
    recolor();
    if (scan.layers.includes(name)) chooseLayer(scan.layers.indexOf(name)); // as in the case before
  }

  return {
    show,
    setLayer,
    keepLayer: () => chooseLayer(layer),
    setCandidates,
    setMask,
    replaceMask,
    setPosition,
    focus: () => panels[0].canvas.focus({ preventScroll: true }),
    remove: () => observer.disconnect(),
  };
}
