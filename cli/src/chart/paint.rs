//! Paints the items of a picture with `plotters`.

use std::sync::LazyLock;

use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea as _};
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, IntoFont as _, RGBColor, ShapeStyle, register_font};
use qi_core::{Error, ErrorKind, Result, ResultExt as _};

use super::layout::{Align, Item};

/// Roboto, under the Apache License 2.0. A picture needs no font of the system.
const FONT: &[u8] = include_bytes!("Roboto-subset.ttf");
const FAMILY: &str = "sans-serif";
static HAS_FONT: LazyLock<bool> = LazyLock::new(|| register_font(FAMILY, FontStyle::Normal, FONT).is_ok());

/// Returns true for a character that [`FONT`] has.
fn is_in_font(character: char) -> bool {
    matches!(character, ' '..='~' | '·' | '×' | '–' | '…')
}

/// Replaces each character that [`FONT`] does not have by its escape, such as `\u{5e01}`. A PNG file would omit it.
pub(super) fn in_font(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        if is_in_font(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_unicode());
        }
    }
    shown
}

/// Returns the width of a text in pixels, with room for the font of a viewer of SVG files.
pub(super) fn text_width(text: &str, size: i32) -> i32 {
    // The viewer of an SVG file has another font for the other characters.
    let known: String =
        text.chars().map(|character| if is_in_font(character) { character } else { 'M' }).collect();
    let measured = if *HAS_FONT { (FAMILY, size).into_font().box_size(&known).ok() } else { None };
    let width = measured.map_or_else(
        || size * i32::try_from(text.chars().count()).unwrap_or(i32::MAX / 100) * 2 / 3,
        |(width, _)| i32::try_from(width).unwrap_or(i32::MAX / 2),
    );
    width + width / 6
}

pub(super) fn svg(items: &[Item], size: (u32, u32)) -> Result<Vec<u8>> {
    let mut picture = String::new();
    paint(&SVGBackend::with_string(&mut picture, size).into_drawing_area(), items)?;
    Ok(picture.into_bytes())
}

pub(super) fn png(items: &[Item], size: (u32, u32)) -> Result<Vec<u8>> {
    let mut pixels = vec![0; size.0 as usize * size.1 as usize * 3];
    paint(&BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area(), items)?;
    let mut picture = Vec::new();
    let mut encoder = png::Encoder::new(&mut picture, size.0, size.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().permanent("chart.paint", "draw")?;
    writer.write_image_data(&pixels).permanent("chart.paint", "draw")?;
    writer.finish().permanent("chart.paint", "draw")?;
    Ok(picture)
}

fn paint<B: DrawingBackend>(area: &DrawingArea<B, Shift>, items: &[Item]) -> Result<()> {
    if !*HAS_FONT {
        return Err(failed("the font cannot be read"));
    }
    let draw = || {
        area.fill(&RGBColor(255, 255, 255))?;
        for item in items {
            match item {
                Item::Box { from, to, color } => {
                    // The far corner is part of a rectangle. `plotters` paints no rectangle without an area.
                    let corners = [*from, (to.0 - 1, to.1 - 1)];
                    if corners[0].0 == corners[1].0 || corners[0].1 == corners[1].1 {
                        area.draw(&PathElement::new(corners.to_vec(), rgb(*color)))?;
                        continue;
                    }
                    area.draw(&Rectangle::new(corners, ShapeStyle::from(rgb(*color)).filled()))?;
                }
                Item::Line { from, to, color } => {
                    area.draw(&PathElement::new(vec![*from, *to], rgb(*color)))?;
                }
                Item::Text { at, text, size, align, color } => {
                    let side = match align {
                        Align::Left => HPos::Left,
                        Align::Center => HPos::Center,
                        Align::Right => HPos::Right,
                    };
                    let style =
                        (FAMILY, *size).into_font().color(&rgb(*color)).pos(Pos::new(side, VPos::Center));
                    area.draw(&Text::new(text.as_str(), *at, style))?;
                }
            }
        }
        area.present()
    };
    draw().map_err(failed)
}

fn rgb((red, green, blue): (u8, u8, u8)) -> RGBColor {
    RGBColor(red, green, blue)
}

fn failed(message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Internal, "chart.paint", "draw").with_message(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_outside_the_font_are_escaped() {
        assert_eq!(in_font("x:A-é 1h – …"), "x:A-\\u{e9} 1h – …");
        assert_eq!(in_font("binance:币"), "binance:\\u{5e01}");
        let ink = |text: &str| {
            let text = text.to_owned();
            let item = Item::Text { at: (10, 50), text, size: 20, align: Align::Left, color: (0, 0, 0) };
            png(&[item], (400, 100)).unwrap()
        };
        for character in ('\0'..='\u{2fff}').filter(|character| is_in_font(*character) && *character != ' ') {
            assert_ne!(ink(&character.to_string()), ink(""), "{character:?} is not in the font");
        }
        assert_eq!(ink("币"), ink(""), "a character outside the font is not painted");
    }
}
