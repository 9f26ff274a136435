"""All that the page says, in English and in Ukrainian."""

LANGUAGES = {"English": "en", "Українська": "uk"}

# By key: English, Ukrainian. Words in braces are filled in.
_TABLE = {
    "title": ("Edit faces by text", "Змінюйте обличчя словами"),
    "subtitle": (
        "Choose a picture, write what you want to see, and compare.",
        "Виберіть зображення, напишіть, що хочете побачити, і порівняйте.",
    ),
    "picture": ("1. Picture", "1. Зображення"),
    "seed": ("Number of the face", "Номер обличчя"),
    "new_face": ("New face", "Нове обличчя"),
    "face": ("Face", "Обличчя"),
    "history_picture": ("Picture", "Зображення"),
    "upload": ("Upload a photo", "Завантажити фото"),
    "align": ("Find and align the face", "Знайти й вирівняти обличчя"),
    "align_info": (
        "Off for pictures that show nothing but a face.",
        "Вимкніть для зображень, де є лише обличчя.",
    ),
    "uploaded": ("Your photo", "Ваше фото"),
    "original": ("original", "оригінал"),
    "aligned": ("aligned", "вирівняне"),
    "reconstructed": ("reconstructed", "відтворене"),
    "no_face": (
        "No face was found. Try a photo with a face seen from the front, or switch off"
        " “Find and align the face” for a picture that shows nothing but a face.",
        "Обличчя не знайдено. Спробуйте фото з обличчям спереду або вимкніть"
        " «Знайти й вирівняти обличчя» для зображення, де є лише обличчя.",
    ),
    "gallery": ("Faces to start from", "Обличчя для початку"),
    "words": ("2. Text", "2. Текст"),
    "text": ("What should the picture show?", "Що має бути на зображенні?"),
    "text_placeholder": ("a person with sunglasses", "людина в темних окулярах"),
    "examples": ("Examples", "Приклади"),
    "more": ("More", "Більше"),
    "neutral": ("What it shows already", "Що воно вже показує"),
    "neutral_info": (
        "The edit is the difference between the two texts.",
        "Зміна – це різниця між двома текстами.",
    ),
    "way": ("3. Method", "3. Спосіб"),
    "method": ("Method", "Спосіб"),
    "instant": ("Instant", "Миттєво"),
    "mapper": ("Trained", "Навчений"),
    "optimize": ("Thorough", "Ретельно"),
    "using": ("Computed by", "Обчислює"),
    "any_text": ("Mapper for any text", "Мережа для будь-якого тексту"),
    "directions": ("Directions", "Напрямки"),
    "strength": ("Strength", "Сила"),
    "strength_info": (
        "Drag it; negative values edit the other way round.",
        "Потягніть; від’ємні значення змінюють у зворотний бік.",
    ),
    "automatic": ("Choose the strength for me", "Підібрати силу автоматично"),
    "threshold": ("Threshold", "Поріг"),
    "threshold_info": (
        "Channels below it stay as they are; larger values change less of the rest.",
        "Канали, нижчі за нього, не змінюються; більші значення менше змінюють решту.",
    ),
    "channels": (
        "Done: {text} (strength {strength:.2f}, {changed} of {channels} channels)",
        "Готово: {text} (сила {strength:.2f}, каналів: {changed} з {channels})",
    ),
    "unchanged": (
        "Done: {text}. The picture shows it already, as far as the model can tell; move the"
        " strength slider to change it all the same.",
        "Готово: {text}. На думку моделі, зображення це вже показує; пересуньте повзунок сили,"
        " щоб усе одно змінити його.",
    ),
    "no_channel": (
        "Nothing passes; lower the threshold to {largest:.2f} or less.",
        "Жоден канал не проходить; зменште поріг до {largest:.2f} або менше.",
    ),
    "mapper_name": ("Trained for", "Навчений на"),
    "steps": ("Steps", "Кроки"),
    "steps_info": ("More change the image more.", "Більше кроків – більша зміна."),
    "hold": ("Hold the rest", "Утримувати решту"),
    "hold_info": (
        "Larger values change less of what the text does not name.",
        "Більші значення менше змінюють те, чого немає в тексті.",
    ),
    "keep_texts": ("Texts that must stay true", "Тексти, що мають лишитися правдою"),
    "keep_texts_info": ("One in a line.", "По одному в рядку."),
    "stop_early": ("Stop when nothing improves", "Зупинитися, коли немає покращення"),
    "go": ("Change the face", "Змінити обличчя"),
    "cancel": ("Cancel", "Скасувати"),
    "cancelled": ("Cancelled.", "Скасовано."),
    "keep": ("Keep this result", "Залишити цей результат"),
    "undo": ("Undo", "Назад"),
    "history": ("This visit", "Цей візит"),
    "show_film": ("Show filmstrip", "Показати кадри"),
    "download_image": ("Download image", "Завантажити зображення"),
    "download_all": ("Download all (ZIP)", "Завантажити все (ZIP)"),
    "download_info": (
        "The ZIP has the image, its latents and settings.json, from which the scripts make the"
        " same image again.",
        "У ZIP: зображення, його латентні коди та settings.json, за яким скрипти знову створять"
        " те саме зображення.",
    ),
    "film": ("Filmstrip", "Кадри"),
    "animation": ("Download animation", "Завантажити анімацію"),
    "before": ("before", "до"),
    "after": ("after", "після"),
    "alt_start": ("The picture to edit", "Зображення для зміни"),
    "alt_edit": ("The picture after the edit “{text}”", "Зображення після зміни «{text}»"),
    "divider": ("Divider between before and after", "Межа між «до» і «після»"),
    "progress": (
        "Step {step} of {steps}, loss {loss:.3f}, about {seconds:.0f} s left",
        "Крок {step} з {steps}, похибка {loss:.3f}, лишилося близько {seconds:.0f} с",
    ),
    "preparing": ("Getting ready…", "Підготовка…"),
    "done": ("Done: {text}", "Готово: {text}"),
    "no_text": ("Write what the picture should show.", "Напишіть, що має бути на зображенні."),
    "long_text": (
        "The text is too long: {length} letters, at most {limit}.",
        "Текст задовгий: {length} літер, не більше {limit}.",
    ),
    "no_edit": ("There is no edit yet.", "Зміни ще немає."),
    "too_slow": (
        "This took longer than {seconds:.0f} seconds and was stopped. Take fewer steps.",
        "Це тривало понад {seconds:.0f} секунд і було зупинено. Візьміть менше кроків.",
    ),
    "failed": (
        "Something went wrong here. Your picture is unchanged; please try again.",
        "Тут щось пішло не так. Ваше зображення не змінилося; спробуйте ще раз.",
    ),
    "closing": (
        "The service is about to stop and takes no new work.",
        "Сервіс зупиняється й не приймає нових завдань.",
    ),
    "wrong_input": ("This does not work: {reason}", "Так не вийде: {reason}"),
}

# Texts that the embedded models understand well, in both languages.
EXAMPLES = (
    ("a person with sunglasses", "людина в темних окулярах"),
    ("a person with a beard", "людина з бородою"),
    ("a person with purple hair", "людина з фіолетовим волоссям"),
    ("a smiling person", "усміхнена людина"),
    ("a person with a red hat", "людина в червоному капелюсі"),
    ("a bald person", "лиса людина"),
)


def say(language: str, key: str, **values: object) -> str:
    """A text of the table in a language.

    Args:
        language: ``en`` or ``uk``.
        key: Of the table.
        values: What fills in the words in braces.
    """
    return _TABLE[key][language == "uk"].format(**values)


def keys() -> list[str]:
    """The keys of the table."""
    return list(_TABLE)


def preferred_language(accept_language: str) -> str:
    """The language that a browser's ``Accept-Language`` puts first, of those there are."""
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
