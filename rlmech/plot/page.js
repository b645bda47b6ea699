"use strict";
(function () {
  var problems = [];
  var cvCount = 0;
  var MOST_BUTTONS = 12;
  window.addEventListener("error", function (event) { note(event.message); });
  window.addEventListener("unhandledrejection", function (event) { note(String(event.reason)); });

  function note(message) {
    problems.push(message);
    document.body.dataset.errors = JSON.stringify(problems);
  }

  function failed(place, error) {
    place.className = "failed";
    place.textContent = "This figure could not be drawn: " + error;
    note(String(error));
  }

  // What is done to a plot is done in order: each change waits for the one before it to be finished.
  function later(place, change) {
    place.pending = (place.pending || Promise.resolve()).then(change).catch(function (error) { failed(place, error); });
  }

  function draw(root) {
    root.querySelectorAll(".plot:not([data-drawn])").forEach(function (place) {
      place.dataset.drawn = "true";
      try {
        var figure = JSON.parse(place.nextElementSibling.textContent);
        var options = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtons: [["toImage", "resetScale2d"]] };
        later(place, function () { return Plotly.newPlot(place, figure.data, figure.layout, options); });
      } catch (error) { failed(place, error); }
    });
    root.querySelectorAll(".cv:not([data-drawn])").forEach(function (place) {
      place.dataset.drawn = "true";
      try {
        var figure = JSON.parse(place.nextElementSibling.textContent);
        cvCount += 1;
        place.id = "cv-drawn-" + cvCount;
        CircuitsVis.render(place.id, CircuitsVis[figure.element], figure.props);
      } catch (error) { failed(place, error); }
    });
  }

  function fill(stage, nodes) {
    stage.querySelectorAll(".plot").forEach(function (place) {
      later(place, function () { Plotly.purge(place); });
    });
    stage.replaceChildren.apply(stage, nodes);
    draw(stage);
  }

  function point(overview, position) {
    var plot = overview.querySelector(".plot");
    if (!plot || position === null) { return; }
    plot.cursor = position;
    later(plot, function () {
      if (plot.cursor !== position || !plot.isConnected || !plot.layout) { return undefined; }
      var shapes = (plot.layout.shapes || []).filter(function (shape) { return shape.name !== "cursor"; });
      shapes.push({ name: "cursor", type: "rect", layer: "below", yref: "paper", y0: 0, y1: 1, line: { width: 0 },
        fillcolor: "#1f5fbf", opacity: 0.14, x0: Number(position) - 0.3, x1: Number(position) + 0.3 });
      return Plotly.relayout(plot, { shapes: shapes });
    });
  }

  // The libraries and the moments lie in the page compressed.
  function unpacked(node) {
    var packed = Uint8Array.from(atob(node.textContent), function (letter) { return letter.charCodeAt(0); });
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  function library(node) {
    return unpacked(node).then(function (code) {
      var script = document.createElement("script");
      script.textContent = code;
      document.head.appendChild(script);
    });
  }

  function nodes(html) {
    var template = document.createElement("template");
    template.innerHTML = html;
    return Array.from(template.content.children);
  }

  function isSmall(cell) {
    var drawing = cell.querySelector("svg"), width = drawing && drawing.getAttribute("width");
    return Boolean(width) && Number(width) < 400;
  }

  // Changes that are too many for a button each: a strip of them, to be clicked anywhere, and two buttons.
  function strip(marks, frames, show) {
    var marked = [], current = 0, canvas = document.createElement("canvas");
    frames.forEach(function (frame, index) { if (frame.mark) { marked.push(index); } });

    function jump(label, find) {
      var button = document.createElement("button");
      button.textContent = label;
      button.addEventListener("click", function () {
        var to = find();
        if (to !== undefined) { show(to); }
      });
      marks.appendChild(button);
    }

    marks.append(marked.length + " changes:");
    jump("◀ change", function () { return marked.filter(function (index) { return index < current; }).pop(); });
    jump("change ▶", function () { return marked.find(function (index) { return index > current; }); });
    marks.appendChild(canvas);
    canvas.addEventListener("click", function (event) {
      var box = canvas.getBoundingClientRect();
      show(Math.round((event.clientX - box.left) / box.width * (frames.length - 1)));
    });
    return function (index) {
      current = index;
      canvas.width = canvas.clientWidth;
      canvas.height = canvas.clientHeight;
      var pen = canvas.getContext("2d"), last = Math.max(1, frames.length - 1);
      pen.fillStyle = "#8b96a3";
      marked.forEach(function (each) { pen.fillRect(each / last * (canvas.width - 2), 4, 1, canvas.height - 8); });
      pen.fillStyle = "#1f5fbf";
      pen.fillRect(index / last * (canvas.width - 3), 0, 3, canvas.height);
    };
  }

  function steps(root, frames) {
    var overviews = Array.from(root.querySelectorAll("template.group-overview"));
    var select = root.querySelector("select"), slider = root.querySelector("input"), output = root.querySelector("output");
    var stage = root.querySelector(".stage"), overviewStage = root.querySelector(".overview");
    var places = [".main", ".side", ".below"].map(function (name) { return root.querySelector(name); });
    var marks = root.querySelector(".marks");
    var shown = [], told = function () {};

    function show(index) {
      var last = shown.length - 1;
      index = Math.max(0, Math.min(last, index));
      slider.value = index;
      output.textContent = shown[index].label;
      var cells = nodes(shown[index].cells.join(""));
      var large = cells.length === 1 && isSmall(cells[0]) ? 0 : 1;  // scores alone stand beside the overview
      fill(places[0], cells.slice(0, large));
      fill(places[1], cells.slice(large, large + 1));
      fill(places[2], cells.slice(large + 1));
      point(overviewStage, shown[index].position);
      told(index);
      marks.querySelectorAll("button").forEach(function (button) {
        button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index));
      });
    }

    function button(frame, index) {
      if (!frame.mark) { return; }
      var made = document.createElement("button");
      made.textContent = frame.mark;
      made.dataset.index = index;
      made.addEventListener("click", function () { show(index); });
      marks.appendChild(made);
    }

    function choose(group, start) {
      shown = frames.filter(function (frame) { return frame.group === group; });
      slider.max = shown.length - 1;
      marks.replaceChildren();
      told = function () {};
      var marked = shown.filter(function (frame) { return frame.mark; });
      if (marked.length > MOST_BUTTONS) { told = strip(marks, shown, show); }
      else { shown.forEach(button); }
      if (marked.length && marked.length <= MOST_BUTTONS) { marks.prepend("Jump to:"); }
      var overview = overviews.find(function (one) { return one.dataset.group === group; });
      fill(overviewStage, overview ? Array.from(overview.content.cloneNode(true).children) : []);
      var first = shown.findIndex(function (frame) { return start ? frame === start : frame.mark; });
      show(first < 0 ? 0 : first);
    }

    select.addEventListener("change", function () { choose(select.value); });
    slider.addEventListener("input", function () { show(Number(slider.value)); });
    root.querySelector(".previous").addEventListener("click", function () { show(Number(slider.value) - 1); });
    root.querySelector(".next").addEventListener("click", function () { show(Number(slider.value) + 1); });
    stage.addEventListener("click", function (event) {
      var key = event.target.closest("[data-toggle-head]");
      if (key) { stage.classList.toggle("hide-head-" + key.dataset.toggleHead); }
    });
    var opening = frames[Number(root.dataset.start)];
    select.value = opening.group;
    choose(opening.group, opening);
  }

  function each(nodes, make) {  // one after the other
    return Array.from(nodes).reduce(function (before, node) {
      return before.then(function () { return make(node); });
    }, Promise.resolve());
  }

  each(document.querySelectorAll("script.library"), library).then(function () {
    return each(document.querySelectorAll(".steps"), function (root) {
      return unpacked(root.querySelector("script.frames")).then(function (text) { steps(root, JSON.parse(text)); });
    });
  }).then(function () {
    draw(document);
    document.body.dataset.ready = "true";
    document.dispatchEvent(new Event("drawn"));
  }).catch(function (error) {
    document.querySelector("header").insertAdjacentText("beforeend", "This page could not be opened; it needs a browser of 2023 or later. " + error);
    note(String(error));
  });
})();
