"use strict";
(function () {
  var problems = [];
  var cvCount = 0;
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
    if (!plot || position === "") { return; }
    plot.cursor = position;
    later(plot, function () {
      if (plot.cursor !== position || !plot.isConnected || !plot.layout) { return undefined; }
      var shapes = (plot.layout.shapes || []).filter(function (shape) { return shape.name !== "cursor"; });
      shapes.push({ name: "cursor", type: "rect", layer: "below", yref: "paper", y0: 0, y1: 1, line: { width: 0 },
        fillcolor: "#1f5fbf", opacity: 0.14, x0: Number(position) - 0.3, x1: Number(position) + 0.3 });
      return Plotly.relayout(plot, { shapes: shapes });
    });
  }

  function steps(root) {
    var frames = Array.from(root.querySelectorAll("template.frame"));
    var overviews = Array.from(root.querySelectorAll("template.group-overview"));
    var select = root.querySelector("select"), slider = root.querySelector("input"), output = root.querySelector("output");
    var stage = root.querySelector(".stage"), overviewStage = root.querySelector(".overview");
    var places = [".main", ".side", ".below"].map(function (name) { return root.querySelector(name); });
    var marks = root.querySelector(".marks");
    var shown = [];

    function show(index) {
      var last = shown.length - 1;
      index = Math.max(0, Math.min(last, index));
      slider.value = index;
      output.textContent = shown[index].dataset.label;
      var cells = Array.from(shown[index].content.cloneNode(true).children);
      fill(places[0], cells.slice(0, 1));
      fill(places[1], cells.slice(1, 2));
      fill(places[2], cells.slice(2));
      point(overviewStage, shown[index].dataset.position);
      marks.querySelectorAll("button").forEach(function (button) {
        button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index));
      });
    }

    function choose(group, start) {
      shown = frames.filter(function (frame) { return frame.dataset.group === group; });
      slider.max = shown.length - 1;
      marks.replaceChildren();
      shown.forEach(function (frame, index) {
        if (!frame.dataset.mark) { return; }
        var button = document.createElement("button");
        button.textContent = frame.dataset.mark;
        button.dataset.index = index;
        button.addEventListener("click", function () { show(index); });
        marks.appendChild(button);
      });
      if (marks.children.length) { marks.prepend("Jump to:"); }
      var overview = overviews.find(function (one) { return one.dataset.group === group; });
      fill(overviewStage, overview ? Array.from(overview.content.cloneNode(true).children) : []);
      var first = shown.findIndex(function (frame) { return start ? frame === start : frame.dataset.mark; });
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
    select.value = opening.dataset.group;
    choose(opening.dataset.group, opening);
  }

  document.querySelectorAll(".steps").forEach(steps);
  draw(document);
  document.body.dataset.ready = "true";
})();
