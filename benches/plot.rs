//! Plots as SVG, into `docs/`.

use std::path::Path;

pub(crate) use plotters::chart::SeriesLabelPosition;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color, IntoDrawingArea, IntoFont, LineSeries, PathElement, RGBColor,
    SVGBackend, WHITE,
};

pub(crate) struct Panel<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: &'a [Line],
    /// Where the lines leave room for their names.
    pub(crate) legend: SeriesLabelPosition,
}

#[derive(Clone, Copy)]
pub(crate) struct Axis {
    name: &'static str,
    log: bool,
}

impl Axis {
    pub(crate) const fn linear(name: &'static str) -> Self {
        Self { name, log: false }
    }

    pub(crate) const fn log(name: &'static str) -> Self {
        Self { name, log: true }
    }
}

pub(crate) struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

impl Line {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, points: Vec::new() }
    }

    pub(crate) fn push(&mut self, x: f64, y: f64) {
        self.points.push((x, y));
    }
}

const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 90, 181), RGBColor(213, 94, 0), RGBColor(110, 170, 225), RGBColor(240, 170, 110)];
const SIZE: (u32, u32) = (560, 400);

/// Draws the panels side by side.
pub(crate) fn plot(file: &str, panels: &[Panel<'_>]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
    let root = SVGBackend::new(&path, (SIZE.0 * panels.len() as u32, SIZE.1)).into_drawing_area();
    // Readers may have a dark page.
    root.fill(&WHITE).unwrap();
    for (panel, area) in panels.iter().zip(root.split_evenly((1, panels.len()))) {
        let Panel { x, y, .. } = *panel;
        let scaled = |line: &Line| {
            line.points.iter().map(|point| (x.scale(point.0), y.scale(point.1))).collect::<Vec<_>>()
        };
        let points: Vec<_> = panel.lines.iter().flat_map(scaled).collect();
        let (xs, ys) = (points.iter().map(|point| point.0), points.iter().map(|point| point.1));
        let mut chart = ChartBuilder::on(&area)
            .caption(panel.title, ("sans-serif", 18).into_font())
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(x.range(xs), y.range(ys))
            .unwrap();
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(x.name)
            .y_desc(y.name)
            .x_label_formatter(&|value| x.label(*value))
            .y_label_formatter(&|value| y.label(*value))
            .draw()
            .unwrap();
        for (line, colour) in panel.lines.iter().zip(COLOURS) {
            chart
                .draw_series(LineSeries::new(scaled(line), colour.stroke_width(2)))
                .unwrap()
                .label(line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            chart
                .draw_series(scaled(line).into_iter().map(|point| Circle::new(point, 3, colour.filled())))
                .unwrap();
        }
        chart
            .configure_series_labels()
            .position(panel.legend.clone())
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()
            .unwrap();
    }
    root.present().unwrap();
    println!("\ndocs/{file}");
}

impl Axis {
    fn scale(self, value: f64) -> f64 {
        if self.log { value.log2() } else { value }
    }

    fn label(self, scaled: f64) -> String {
        let value = if self.log { scaled.exp2() } else { scaled };
        if value < 1.0 && value > 0.0 { format!("{value:.2}") } else { format!("{value:.0}") }
    }

    /// From zero, or from the power of two below.
    fn range(self, scaled: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
        let largest = scaled.clone().fold(f64::MIN, f64::max);
        if self.log { scaled.fold(f64::MAX, f64::min).floor()..largest.ceil() } else { 0.0..largest * 1.05 }
    }
}
