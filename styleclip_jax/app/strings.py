"""All texts of the page in English and Ukrainian."""

LANGUAGES = {"English": "en", "Українська": "uk"}

# English and Ukrainian by key, with the fields of str.format.
_TABLE = {
    "title": ("Edit faces with text", "Змінюйте обличчя словами"),
    "subtitle": (
        "Choose an image, describe the change you want, and compare.",
        "Виберіть зображення, опишіть бажану зміну й порівняйте.",
    ),
    "image_heading": ("1. Image", "1. Зображення"),
    "seed": ("Face number", "Номер обличчя"),
    "new_face": ("New face", "Нове обличчя"),
    "upload": ("Upload a photo", "Завантажити фото"),
    "align": ("Find and align the face", "Знайти й вирівняти обличчя"),
    "align_info": (
        "Uncheck for images that show only a face.",
        "Вимкніть для зображень, де є лише обличчя.",
    ),
    "uploaded": ("Your photo", "Ваше фото"),
    "original": ("original", "оригінал"),
    "aligned": ("aligned", "вирівняне"),
    "reconstructed": ("reconstructed", "відтворене"),
    "no_face": (
        "No face was found. Use a photo that shows a face from the front, or uncheck"
        " “Find and align the face” if the image shows only a face.",
        "Обличчя не знайдено. Виберіть фото з обличчям спереду або вимкніть"
        " «Знайти й вирівняти обличчя», якщо на зображенні є лише обличчя.",
    ),
    "gallery": ("Faces to start from", "Обличчя для початку"),
    "gallery_image": ("Face", "Обличчя"),
    "text_heading": ("2. Text", "2. Текст"),
    "text": ("What should the image show?", "Що має бути на зображенні?"),
    "text_placeholder": ("a person with sunglasses", "людина в темних окулярах"),
    "more": ("More options", "Додатково"),
    "neutral": ("What the image shows now", "Що на зображенні зараз"),
    "neutral_info": (
        "The edit is the difference between the two texts.",
        "Зміна – це різниця між двома текстами.",
    ),
    "method_heading": ("3. Method", "3. Спосіб"),
    "method": ("Method", "Спосіб"),
    "instant": ("Instant", "Миттєво"),
    "mapper": ("Trained", "Навчений"),
    "optimize": ("Thorough", "Ретельно"),
    "using": ("Edit with", "Чим змінювати"),
    "any_text": ("Mapper for any text", "Мережа для будь-якого тексту"),
    "directions": ("Directions", "Напрямки"),
    "strength": ("Strength", "Сила"),
    "strength_info": (
        "Drag to adjust; negative values reverse the edit.",
        "Потягніть, щоб змінити; від’ємні значення діють у зворотний бік.",
    ),
    "automatic": ("Choose the strength automatically", "Підібрати силу автоматично"),
    "threshold": ("Threshold", "Поріг"),
    "threshold_info": (
        "Channels below the threshold do not change; a higher one preserves more of the image.",
        "Канали, нижчі за поріг, не змінюються; вищий поріг зберігає більше на зображенні.",
    ),
    "mapper_name": ("Trained for", "Навчений на"),
    "steps": ("Steps", "Кроки"),
    "steps_info": ("More steps change the image more.", "Більше кроків – більша зміна."),
    "hold": ("Preserve the rest", "Зберігати решту"),
    "hold_info": (
        "Larger values preserve more of what the text does not mention.",
        "Більші значення краще зберігають те, чого немає в тексті.",
    ),
    "keep_texts": ("Texts that must stay true", "Тексти, що мають лишитися правдою"),
    "keep_texts_info": ("One per line.", "По одному в рядку."),
    "stop_early": ("Stop when the result stops improving", "Зупинитися, коли немає покращення"),
    "go": ("Edit the face", "Змінити обличчя"),
    "cancel": ("Cancel", "Скасувати"),
    "cancelled": ("Cancelled.", "Скасовано."),
    "keep": ("Keep this result", "Залишити цей результат"),
    "undo": ("Undo", "Назад"),
    "history": ("History", "Історія"),
    "history_image": ("Image", "Зображення"),
    "download_image": ("Download image", "Завантажити зображення"),
    "download_all": ("Download all (ZIP)", "Завантажити все (ZIP)"),
    "filmstrip": ("Filmstrip", "Кадри"),
    "show_filmstrip": ("Show filmstrip", "Показати кадри"),
    "animation": ("Download animation", "Завантажити анімацію"),
    "before": ("before", "до"),
    "after": ("after", "після"),
    "alt_start": ("The image to edit", "Зображення для зміни"),
    "alt_edit": ("The image after the edit “{text}”", "Зображення після зміни «{text}»"),
    "divider": ("Divider between before and after", "Межа між «до» і «після»"),
    "preparing": ("Preparing…", "Підготовка…"),
    "progress": (
        "Step {step} of {steps}, loss {loss:.3f}, about {seconds:.0f} s left",
        "Крок {step} з {steps}, похибка {loss:.3f}, лишилося близько {seconds:.0f} с",
    ),
    "done": ("Done: {text}", "Готово: {text}"),
    "done_instant": (
        "Done: {text} (strength {strength:.2f}, {changed} of {channels} channels)",
        "Готово: {text} (сила {strength:.2f}, каналів: {changed} з {channels})",
    ),
    "unchanged": (
        "Done: {text}. According to the model, the image already shows this; move the strength"
        " slider to change it anyway.",
        "Готово: {text}. На думку моделі, зображення це вже показує; пересуньте повзунок сили,"
        " щоб усе одно змінити його.",
    ),
    "no_channel": (
        "Nothing passes; lower the threshold to {largest:.2f} or less.",
        "Жоден канал не проходить; зменште поріг до {largest:.2f} або менше.",
    ),
    "no_text": (
        "The text is empty. Describe what the image should show.",
        "Текст порожній. Опишіть, що має бути на зображенні.",
    ),
    "long_text": (
        "The text has {length} characters, but at most {limit} are allowed. Shorten it.",
        "Текст задовгий: символів – {length}, дозволено не більше {limit}. Скоротіть його.",
    ),
    "no_edit": (
        "There is no edit yet. Edit the face first.",
        "Зміни ще немає. Спершу змініть обличчя.",
    ),
    "too_slow": (
        "The edit took longer than {seconds:.0f} seconds and was stopped. Use fewer steps.",
        "Зміна тривала понад {seconds:.0f} секунд, і її зупинено. Зменште кількість кроків.",
    ),
    "failed": (
        "Something went wrong. Your image is unchanged; please try again.",
        "Щось пішло не так. Ваше зображення не змінилося; спробуйте ще раз.",
    ),
    "closing": (
        "The service is shutting down and accepts no new edits. Try again later.",
        "Сервіс зупиняється й не приймає нових змін. Спробуйте пізніше.",
    ),
    "wrong_input": ("This did not work: {reason}", "Не вдалося: {reason}"),
}

# Texts that the avatars' models understand well.
EXAMPLES = (
    ("a person with sunglasses", "людина в темних окулярах"),
    ("a person with a beard", "людина з бородою"),
    ("a person with purple hair", "людина з фіолетовим волоссям"),
    ("a smiling person", "усміхнена людина"),
    ("a person with a red hat", "людина в червоному капелюсі"),
    ("a bald person", "лиса людина"),
)


def say(language: str, key: str, **values: object) -> str:
    """Returns a text of the page.

    Args:
        language: ``en`` or ``uk``.
        key: Key in the table.
        values: Values of the fields in braces.
    """
    return _TABLE[key][language == "uk"].format(**values)


def keys() -> list[str]:
    """Returns the keys of the table."""
    return list(_TABLE)


def preferred_language(accept_language: str) -> str:
    """Returns the available language that a browser's ``Accept-Language`` prefers."""
    weights = {}
    for item in accept_language.split(","):
        name, _, quality = item.partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            weight = 0.0
        language = name.strip().lower().split("-")[0]
        if language in LANGUAGES.values():
            weights[language] = max(weight, weights.get(language, 0.0))
    return max(weights, key=lambda language: weights[language]) if weights else "en"
